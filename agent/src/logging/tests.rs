use std::io;
use std::sync::{Arc, Mutex};

use tracing_subscriber::layer::SubscriberExt;

use super::{Filter, Form, layers};

/// What was written.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Page {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

impl io::Write for Page {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn filters() {
    let rows = [
        ("info", true),
        ("INFO", true),
        ("off", true),
        ("info,portcullis::netlink=debug", true),
        ("info, portcullis=trace", true),
        ("portcullis=debug", true),
        ("debgu", false),
        ("portcullis", false),
        ("portcullis=loud", false),
        ("=debug", false),
        ("", false),
        ("info,", false),
    ];
    for (text, expected) in rows {
        assert_eq!(text.parse::<Filter>().is_ok(), expected, "{text:?}");
    }
}

#[test]
fn the_level_can_be_changed_while_the_log_runs() {
    let page = Page::default();
    let writer = page.clone();
    let (layer, control) = layers(&"info".parse().unwrap(), Form::Text, false, move || writer.clone());
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        tracing::debug!("unheard");
        tracing::info!("heard");
        let text = page.take();
        assert!(text.contains("heard") && !text.contains("unheard"), "{text}");
        assert_eq!(control.filter().unwrap(), "info");

        control.set(&"warn,portcullis::logging=debug".parse().unwrap()).unwrap();
        assert!(control.filter().unwrap().contains("portcullis::logging=debug"), "{}", control.filter().unwrap());
        tracing::debug!("now heard");
        tracing::info!(target: "other", "not any more");
        let text = page.take();
        assert!(text.contains("now heard") && !text.contains("not any more"), "{text}");
    });
}

#[test]
fn json_is_an_object_on_each_line() {
    let page = Page::default();
    let writer = page.clone();
    let (layer, _control) = layers(&"info".parse().unwrap(), Form::Json, true, move || writer.clone());
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        tracing::warn!(pod = "x/a", "two\nlines and \u{1b}[2J");
    });
    let text = page.take();
    assert_eq!(text.lines().count(), 1, "{text}");
    let object: serde_json::Value = serde_json::from_str(&text).unwrap();
    let field = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
    assert_eq!((field("level"), field("pod")), ("WARN".into(), "x/a".into()), "{text}");
    assert_eq!(field("message"), "two\nlines and \u{1b}[2J", "{text}");
}
