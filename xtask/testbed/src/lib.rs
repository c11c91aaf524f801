//! Nodes and pods made of network namespaces and veths.
