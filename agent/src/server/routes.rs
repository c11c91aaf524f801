//! Paths and their answers.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};

use super::{Answers, Readiness, Refusal, Views};
use crate::metrics;

type Shared<A> = State<Arc<Views<A>>>;

/// What is served on TCP.
pub(super) fn http<A: Answers>(views: Arc<Views<A>>) -> Router {
    Router::new()
        .route("/metrics", get(figures::<A>))
        .route("/healthz", get(health::<A>))
        .route("/readyz", get(readiness::<A>))
        .fallback(async || (StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n"))
        .with_state(views)
}

/// What is served on the socket.
pub(super) fn socket<A: Answers>(views: Arc<Views<A>>) -> Router {
    Router::new()
        .route("/status", get(status::<A>))
        .route("/cluster", post(cluster::<A>))
        .route("/log-level", get(log_level::<A>).put(set_log_level::<A>))
        .fallback(async || (StatusCode::NOT_FOUND, "there are /status, /cluster and /log-level\n"))
        .with_state(views)
}

async fn figures<A: Answers>(State(views): Shared<A>) -> Response {
    let figures = match views.answers.figures().await {
        Ok(figures) => figures,
        Err(reason) => return unavailable(reason),
    };
    match metrics::render(figures) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn status<A: Answers>(State(views): Shared<A>) -> Response {
    match views.answers.status().await {
        Ok(status) => Json(status).into_response(),
        Err(reason) => unavailable(reason),
    }
}

async fn cluster<A: Answers>(State(views): Shared<A>, question: String) -> Response {
    views.answers.cluster(question).await.map(Json).map_err(refused).into_response()
}

async fn log_level<A: Answers>(State(views): Shared<A>) -> Response {
    views.answers.log_level(None).await.map_err(refused).into_response()
}

async fn set_log_level<A: Answers>(State(views): Shared<A>, filter: String) -> Response {
    views.answers.log_level(Some(filter)).await.map_err(refused).into_response()
}

fn refused(refusal: Refusal) -> Response {
    match refusal {
        Refusal::Unavailable(reason) => unavailable(reason),
        Refusal::Question(reason) => (StatusCode::UNPROCESSABLE_ENTITY, format!("{reason}\n")).into_response(),
    }
}

async fn health<A: Answers>(State(views): Shared<A>) -> Response {
    if views.beat.has_changed().is_err() {
        return unavailable("the main loop has ended");
    }
    let silence = Instant::now().saturating_duration_since(*views.beat.borrow());
    if silence > views.beat_limit {
        return unavailable(format_args!("the main loop has been stuck for {} s", silence.as_secs()));
    }
    "ok\n".into_response()
}

async fn readiness<A: Answers>(State(views): Shared<A>) -> Response {
    if views.readiness.has_changed().is_err() {
        return unavailable("the agent is stopping");
    }
    // The guard is a lock: it must not outlive the copy.
    let readiness = views.readiness.borrow().clone();
    match readiness {
        Readiness::Ready => "ready\n".into_response(),
        Readiness::NotReady(reason) => unavailable(reason),
    }
}

fn unavailable(reason: impl Display) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
}
