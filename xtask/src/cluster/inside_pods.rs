//! What runs inside the trials' pods: this program under another order, in an image of its own.

pub(super) mod image;
pub(super) mod probe;
pub(super) mod proxy;
