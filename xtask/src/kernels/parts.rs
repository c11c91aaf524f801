//! What runs in each guest, in this order.

use anyhow::{Result, bail};

/// One run of a test program.
#[derive(Debug, PartialEq)]
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
    /// The series of the kernels on which CI runs it.
    usual: &'static [&'static str],
}

/// The package of a test program, for the build.
pub(crate) const PROGRAMS: [(&str, &[&str]); 1] =
    [("portcullis", &["programs_live", "judges_live", "stamp_live", "live_policy"])];

/// Set to `all`, every part runs on every kernel; set to names (`stamp,routed`), those do; else those that fit into CI's time.
const CHOICE: &str = "PORTCULLIS_KERNEL_PARTS";

const EVERY: &[&str] = &["5.10", "6.1", "6.12", "newest"];
/// The oldest and the newest: what differs between kernels differs between these.
const ENDS: &[&str] = &["5.10", "newest"];

/// The parts that are to run on the kernel of a series.
///
/// # Errors
/// When a part is asked for that there is not.
pub(crate) fn parts(series: &str) -> Result<Vec<&'static Part>> {
    chosen(std::env::var(CHOICE).ok().as_deref(), series)
}

fn chosen(choice: Option<&str>, series: &str) -> Result<Vec<&'static Part>> {
    let names: Vec<&str> =
        choice.unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    if let Some(name) = names.iter().find(|name| **name != "all" && !ALL.iter().any(|part| part.name == **name)) {
        let known: Vec<&str> = ALL.iter().map(|part| part.name).collect();
        bail!("{CHOICE} names the part `{name}`, which there is not: the parts are {}, or `all`", known.join(", "));
    }
    let is_wanted = |part: &&Part| match names[..] {
        [] => part.usual.contains(&series),
        _ => names.contains(&"all") || names.contains(&part.name),
    };
    Ok(ALL.iter().filter(is_wanted).collect())
}

/// Every part's name, in their order.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|part| part.name)
}

const GUEST: &[&str] = &["PORTCULLIS_GUEST=1"];

const ALL: [Part; 7] = [
    Part { name: "load", test: "programs_live", filters: &[], environment: &[], patience: 600, usual: EVERY },
    Part {
        name: "judges",
        test: "judges_live",
        filters: &["three_judges_agree"],
        environment: &["PORTCULLIS_CLUSTERS=4"],
        patience: 900,
        usual: EVERY,
    },
    Part { name: "stamp", test: "stamp_live", filters: &[], environment: &[], patience: 900, usual: EVERY },
    Part {
        name: "services",
        test: "live_policy",
        filters: &["rewritten::routed_by_iptables_nft"],
        environment: GUEST,
        patience: 900,
        usual: ENDS,
    },
    Part {
        name: "attacks",
        test: "live_policy",
        filters: &["attacks::attacks_on_bridged_pods_fail"],
        environment: GUEST,
        patience: 900,
        usual: ENDS,
    },
    // SCTP, IPVS, detours, tunnels. A kernel that has loaded SCTP refuses what the testbed's own SCTP sends.
    Part {
        name: "routed",
        test: "live_policy",
        filters: &["together::routed"],
        environment: GUEST,
        patience: 900,
        usual: ENDS,
    },
    Part {
        name: "bridged",
        test: "live_policy",
        filters: &["together::bridged"],
        environment: GUEST,
        patience: 900,
        usual: ENDS,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen_names(choice: Option<&str>, series: &str) -> Vec<&'static str> {
        chosen(choice, series).unwrap().iter().map(|part| part.name).collect()
    }

    #[test]
    fn ci_runs_every_part_on_the_oldest_and_the_newest_kernel() {
        for series in ENDS {
            assert_eq!(chosen_names(None, series), names().collect::<Vec<_>>(), "{series}");
        }
    }

    #[test]
    fn parts_are_chosen_by_name_or_altogether() {
        let all: Vec<&str> = names().collect();
        let rows = [
            (None, "6.1", vec!["load", "judges", "stamp"], "what CI runs on a kernel between"),
            (Some(""), "6.1", vec!["load", "judges", "stamp"], "an empty choice is none"),
            (Some("all"), "6.1", all, "all of them"),
            (Some("routed, stamp"), "6.1", vec!["stamp", "routed"], "by name, in their own order"),
        ];
        for (choice, series, expected, message) in rows {
            assert_eq!(chosen_names(choice, series), expected, "{message}");
        }
        let error = chosen(Some("stamp,nonsense"), "6.1").unwrap_err().to_string();
        assert!(error.contains("`nonsense`") && error.contains("bridged"), "{error}");
    }
}
