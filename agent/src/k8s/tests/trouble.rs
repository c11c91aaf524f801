//! What the watches make of servers that do not do as they should.

use std::time::Duration;

use super::super::follow::Timing;
use super::scripted::{Answer, Asked, Scene, bookmark, error, listed, page};

const FIRST: Duration = Duration::from_millis(40);
const LAST: Duration = Duration::from_millis(160);

fn timing() -> Timing {
    Timing {
        answer: Duration::from_secs(30),
        silence: Duration::from_secs(30),
        backoff: [FIRST, LAST],
        watch_seconds: 300,
    }
}

fn is_list(path: &str) -> bool {
    path.contains("sendInitialEvents=true") || !path.contains("watch=")
}

/// The waits grow: each is at least half of what it may be, and no machine is so slow that it makes them shorter.
fn assert_paced(why: &str, asked: &Asked, requests: usize) {
    let least: Duration = (0..requests - 1).map(|turn| LAST.min(FIRST * (1 << turn.min(8))) / 2).sum();
    let took = asked[requests - 1].1 - asked[0].1;
    assert!(took >= least, "{why}: {requests} requests within {took:?}, and {least:?} is the least");
}

#[tokio::test]
async fn whatever_always_fails_is_asked_more_and_more_rarely() {
    type Script = fn(usize, &str) -> Answer;
    let rows: [(&str, Script); 7] = [
        ("410 as an answer", |_, _| Answer::refusal(410, "")),
        ("429 with Retry-After that is shorter than the waits", |_, _| Answer::refusal(429, "retry-after: 0\r\n")),
        ("500", |_, _| Answer::refusal(500, "")),
        ("410 within the list", |_, _| Answer::lines(&[error(410)])),
        ("500 within the list", |_, _| Answer::lines(&[error(500)])),
        ("an end in the list", |_, _| Answer::lines(&[])),
        ("no API server", |_, _| Answer { body: "<html>".into(), ..Answer::lines(&[]) }),
    ];
    for (why, script) in rows {
        let scene = Scene::begin(timing(), script).await;
        scene.until(why, |scene| scene.asked().len() >= 8).await;
        assert_paced(why, &scene.asked(), 8);
    }
}

#[tokio::test]
async fn lists_that_are_forgotten_at_once_are_paced() {
    let scene = Scene::begin(timing(), |_, path| match is_list(path) {
        true => Answer::lines(&[listed("5")]),
        false => Answer::refusal(410, ""),
    })
    .await;
    scene.until("four lists", |scene| scene.asked().iter().filter(|(path, _)| is_list(path)).count() >= 4).await;
    assert_paced("410 after each list", &scene.asked(), 7);
    // Pages, whose watch begins without a wait: every second request has one.
    let scene = Scene::begin(timing(), |_, path| match (path.contains("sendInitialEvents"), is_list(path)) {
        (true, _) => Answer { body: "sendInitialEvents is forbidden".into(), ..Answer::refusal(422, "") },
        (false, true) => page("5"),
        (false, false) => Answer::refusal(410, ""),
    })
    .await;
    scene.until("five lists", |scene| scene.asked().len() >= 12).await;
    let lists: Asked = scene.asked().into_iter().skip(1).filter(|(path, _)| is_list(path)).collect();
    assert_paced("410 after each list in pages", &lists, 5);
}

#[tokio::test]
async fn the_server_is_left_alone_as_long_as_it_asks() {
    let scene = Scene::begin(timing(), |number, _| match number {
        0 => Answer::refusal(429, "retry-after: 1\r\n"),
        _ => Answer::lines(&[listed("5")]).hanging(),
    })
    .await;
    scene.until("a list", |scene| scene.asked().len() >= 2).await;
    let asked = scene.asked();
    assert!(asked[1].1 - asked[0].1 >= Duration::from_secs(1), "{asked:?}");
}

#[tokio::test]
async fn streaming_lists_that_break_off_give_way_to_pages() {
    for (why, broken) in [("500 in its middle", vec![bookmark("3"), error(500)]), ("an end in its middle", vec![])] {
        let scene = Scene::begin(timing(), move |_, path| match (path.contains("sendInitialEvents"), is_list(path)) {
            (true, _) => Answer::lines(&broken),
            (false, true) => page("5"),
            (false, false) => Answer::lines(&[bookmark("6")]).hanging(),
        })
        .await;
        scene
            .until(why, |scene| scene.asked().last().is_some_and(|(path, _)| path.contains("resourceVersion=5")))
            .await;
        let lists = scene.asked().iter().filter(|(path, _)| path.contains("sendInitialEvents")).count();
        assert_eq!(lists, 2, "{why}: streaming lists before pages");
    }
}

#[tokio::test]
async fn only_what_a_watch_tells_proves_that_it_stands() {
    // In sync by the list; then refused; then a watch that answers 200 and is silent; then one that errs.
    let scene = Scene::begin(timing(), |number, _| match number {
        0 => Answer::lines(&[listed("5")]),
        1 => Answer::refusal(500, ""),
        2 => Answer::lines(&[error(500)]),
        _ => Answer::lines(&[]).hanging(),
    })
    .await;
    scene.until("a silent watch", |scene| scene.asked().len() >= 4).await;
    // The answer has come when the connection is in use: nothing else will happen on it.
    for _ in 0..20 {
        assert!(scene.loss().is_some(), "a 200 alone says in sync");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (path, _) = scene.asked().pop().unwrap();
    let seconds: u64 = path.split("timeoutSeconds=").nth(1).unwrap().split('&').next().unwrap().parse().unwrap();
    assert!(seconds <= 10, "a watch that is to prove itself is short, for its bookmark: {path}");

    let scene = Scene::begin(timing(), |number, _| match number {
        0 => Answer::lines(&[listed("5")]),
        1 => Answer::refusal(500, ""),
        _ => Answer::lines(&[bookmark("6")]).hanging(),
    })
    .await;
    scene.until("the loss and a bookmark", |scene| scene.asked().len() >= 3 && scene.loss().is_none()).await;
}

#[tokio::test]
async fn watches_that_end_without_a_word_are_a_loss() {
    let scene = Scene::begin(timing(), |number, _| match number {
        0 => Answer::lines(&[listed("5")]),
        _ => Answer::lines(&[]),
    })
    .await;
    scene.until("the loss", |scene| scene.loss().is_some_and(|loss| loss.contains("without having told"))).await;
    assert_paced("ends without a word", &scene.asked(), 3);
}

#[tokio::test]
async fn a_version_that_goes_back_lists_again_and_an_old_deletion_does_not() {
    let gone = serde_json::json!({"type": "DELETED", "object": {"metadata": {"name": "x", "resourceVersion": "2"}}});
    let lines = [listed("5"), gone, bookmark("4")];
    let scene = Scene::begin(timing(), move |number, _| match number {
        0 => Answer::lines(&lines).hanging(),
        _ => Answer::lines(&[listed("4")]).hanging(),
    })
    .await;
    scene.until("a second list", |scene| scene.asked().len() >= 2).await;
    let asked = scene.asked();
    assert!(is_list(&asked[1].0), "{asked:?}");
    let old = serde_json::json!({"type": "DELETED", "object": {"metadata": {"name": "x", "resourceVersion": "2"}}});
    let scene = Scene::begin(timing(), move |number, _| match number {
        0 => Answer::lines(&[listed("5"), old.clone()]),
        _ => Answer::lines(&[]).hanging(),
    })
    .await;
    scene.until("the next watch", |scene| scene.asked().len() >= 2).await;
    let asked = scene.asked();
    assert!(asked[1].0.contains("resourceVersion=5"), "it goes on from the newest: {asked:?}");
}
