//! What runs in each guest, in this order.

/// One run of a test program.
pub(crate) struct Part {
    /// Names it in the table.
    pub(crate) name: &'static str,
    /// The integration test whose program it is.
    pub(crate) test: &'static str,
    /// Filters of the tests in it.
    pub(crate) filters: &'static [&'static str],
    /// Variables, `NAME=value`.
    pub(crate) environment: &'static [&'static str],
    /// Seconds after which it has failed; generous, since a guest is ten times slower than the machine, which may be busy.
    pub(crate) patience: u32,
}

/// The package of a test program, for the build.
pub(crate) const PROGRAMS: [(&str, &[&str]); 1] =
    [("portcullis", &["programs_live", "judges_live", "stamp_live", "live_policy"])];

/// Set, all parts run, which takes each guest about ten minutes; else the first [`USUAL`].
const ALL: &str = "PORTCULLIS_KERNEL_PARTS";

/// How many of [`EVERY`] fit into CI's time: those that say most of a kernel.
const USUAL: usize = 3;

/// The parts that are to run.
pub(crate) fn parts() -> &'static [Part] {
    if std::env::var(ALL).is_ok_and(|parts| parts == "all") { &EVERY } else { &EVERY[..USUAL] }
}

const EVERY: [Part; 8] = [
    Part { name: "load, attach", test: "programs_live", filters: &[], environment: &[], patience: 240 },
    Part {
        name: "judges",
        test: "judges_live",
        filters: &["three_judges_agree"],
        environment: &["PORTCULLIS_CLUSTERS=8"],
        patience: 480,
    },
    Part { name: "stamp", test: "stamp_live", filters: &[], environment: &[], patience: 480 },
    Part {
        name: "services",
        test: "live_policy",
        filters: &[
            "suite::every_scenario_holds_between_routed_pods",
            "suite::every_scenario_holds_between_bridged_pods",
        ],
        environment: &["PORTCULLIS_SCENARIOS=25"],
        patience: 480,
    },
    Part {
        name: "detours",
        test: "live_policy",
        filters: &["detours::a_denied_backend"],
        environment: &["PORTCULLIS_GUEST=1"],
        patience: 480,
    },
    Part {
        name: "attacks",
        test: "live_policy",
        filters: &["attacks::attacks_on_bridged_pods_fail"],
        environment: &[],
        patience: 480,
    },
    Part {
        name: "IPVS",
        test: "live_policy",
        filters: &["ipvs::"],
        environment: &["PORTCULLIS_GUEST=1"],
        patience: 480,
    },
    // Last, since a kernel that has loaded SCTP refuses what the testbed's own SCTP sends.
    Part {
        name: "SCTP",
        test: "live_policy",
        filters: &["sctp::associations"],
        environment: &["PORTCULLIS_GUEST=1"],
        patience: 480,
    },
];

/// Modules that nothing asks the kernel for in time, or only from a namespace in which that is not allowed.
pub(crate) const MODULES: [&str; 9] = [
    "veth",
    "bridge",
    "br_netfilter",
    "sch_ingress",
    "cls_bpf",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "dummy",
    "nft_compat",
];
