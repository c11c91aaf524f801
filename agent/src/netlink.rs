//! The only room that knows netlink.
