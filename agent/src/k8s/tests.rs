//! What is read of objects and lists; the tests in `agent/tests/api` ask a real API server.

mod objects;
mod scripted;
mod stored;
mod trouble;
