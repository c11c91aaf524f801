//! Addresses that the node rewrites, by kube-proxy's rules and others: whatever leads to a pod, a policy judges who is
//! really there. One cluster after another, each with one agent for each node, answers the same questions: first without
//! any policy, when every one is answered by whom it is meant for, so that a way which does not work cannot pass for one
//! that is denied; then under each policy.

mod around;
mod counted;
mod egress;
mod ground;
mod ingress;
mod own_node;
mod rows;

use portcullis_testbed::{Proxy, Shape};

use ground::{Ground, Setting, Tunnel};

/// Asks all tables, and fails with every wrong row of every table.
fn holds(setting: Setting) {
    let name = setting.name;
    let ground = Ground::new(setting);
    let mut wrong = egress::judge(&ground);
    wrong.extend(around::judge(&ground));
    wrong.extend(ingress::judge(&ground));
    wrong.extend(counted::judge(&ground));
    assert!(wrong.is_empty(), "{name}: {} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn routed_by_iptables_nft() {
    let setting = Setting::new("routed, iptables-nft, strict rp_filter", Shape::Routed, Proxy::IptablesNft);
    holds(Setting { rp_filter: Some(1), ..setting });
}

#[test]
fn routed_by_nftables() {
    holds(Setting::new("routed, nftables", Shape::Routed, Proxy::Nftables));
}

#[test]
fn routed_by_iptables_legacy_with_unknown_services() {
    let setting = Setting::new("routed, iptables-legacy, unknown services", Shape::Routed, Proxy::IptablesLegacy);
    holds(Setting { known_services: false, ..setting });
}

#[test]
fn routed_over_vxlan_with_masquerade_to_outside() {
    let setting = Setting::new("routed over VXLAN, ip-masq", Shape::Routed, Proxy::IptablesNft);
    holds(Setting { tunnel: Some(Tunnel::Vxlan), ip_masq: true, ..setting });
}

/// For the kernels that have such devices: this one may not.
#[test]
fn routed_over_ipip() {
    if !Tunnel::Ipip.is_there() {
        eprintln!("skipped: this kernel has no devices of type ipip and sit");
        return;
    }
    let setting = Setting::new("routed over IPIP", Shape::Routed, Proxy::IptablesNft);
    holds(Setting { tunnel: Some(Tunnel::Ipip), ..setting });
}

#[test]
fn bridged_by_iptables_nft_with_two_uplinks() {
    let setting = Setting::new("bridged, iptables-nft, two uplinks, ip-masq", Shape::Bridged, Proxy::IptablesNft);
    holds(Setting { second_uplink: true, ip_masq: true, rp_filter: Some(2), ..setting });
}

#[test]
fn bridged_by_iptables_legacy_over_vxlan() {
    let setting = Setting::new("bridged over VXLAN, iptables-legacy", Shape::Bridged, Proxy::IptablesLegacy);
    holds(Setting { tunnel: Some(Tunnel::Vxlan), ..setting });
}

#[test]
fn bridged_by_nftables_without_br_netfilter() {
    let setting = Setting::new("bridged, nftables, no br_netfilter", Shape::Bridged, Proxy::Nftables);
    holds(Setting { br_netfilter: false, ..setting });
}

#[test]
fn routed_by_clsact_with_two_uplinks_one_unmasqueraded() {
    let setting = Setting::new("routed, clsact, two uplinks, replies by the other", Shape::Routed, Proxy::Nftables);
    holds(Setting { second_uplink: true, arguments: vec!["--attach".into(), "clsact".into()], ..setting });
}

/// The setting that subjects what pods send to their own node to policy.
fn judges_own_node(setting: Setting) {
    let setting = Setting { arguments: vec!["--own-node".into(), "policy".into()], ..setting };
    let ground = Ground::new(setting);
    let wrong = own_node::judge(&ground);
    assert!(wrong.is_empty(), "{}: {} wrong:\n{}", ground.setting.name, wrong.len(), wrong.join("\n"));
}

#[test]
fn own_node_routed() {
    judges_own_node(Setting::new("own node, routed, iptables-nft", Shape::Routed, Proxy::IptablesNft));
}

#[test]
fn own_node_bridged() {
    judges_own_node(Setting::new("own node, bridged, nftables", Shape::Bridged, Proxy::Nftables));
}
