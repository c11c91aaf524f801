//! The programs and the kernel: they load, the verifier's work stays within a budget, and they attach in both ways. Needs
//! root.

#![expect(clippy::panic, clippy::print_stdout, reason = "helpers of tests, and a table to read")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use portcullis::dataplane::{self, Dataplane, Hooks, Settings};
use portcullis::state::image::Sizes;
use portcullis_testbed::{PodOptions, Shape, Testbed, TestbedOptions};

/// For each program the most instructions that any kernel's verifier may follow.
const BUDGETS: &str = include_str!("programs_live.budget");

/// Pins of this process, which go when it is dropped.
struct Pins(PathBuf);

impl Pins {
    fn new(name: &str) -> Self {
        Self(PathBuf::from(format!("/sys/fs/bpf/portcullis-{name}-{}", std::process::id())))
    }

    fn settings(&self, clsact: bool) -> Settings {
        let sizes = Sizes::small();
        Settings { pin_dir: self.0.clone(), sizes, clsact, mark_shift: None, test: false }
    }

    fn open(&self, clsact: bool) -> Dataplane {
        let opened = Dataplane::open(&self.settings(clsact));
        opened.unwrap_or_else(|error| panic!("{error}: these tests need root and the programs")).0
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // Before uninstalling became possible there may be nothing to uninstall.
        let _ = dataplane::uninstall(&self.0);
    }
}

fn budgets() -> BTreeMap<&'static str, u32> {
    let lines = BUDGETS.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let rows = lines.map(|line| {
        let (name, number) = line.split_once(' ').unwrap_or_else(|| panic!("not `name number`: {line}"));
        (name, number.trim().parse().unwrap_or_else(|error| panic!("{line}: {error}")))
    });
    rows.collect()
}

#[test]
fn the_verifier_has_no_more_to_do_than_the_budget() {
    let pins = Pins::new("verified");
    let mut dataplane = pins.open(false);
    let counts = dataplane.verified_instructions(&pins.settings(false)).unwrap();
    let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
    let budgets = budgets();
    let mut above = Vec::new();
    for (name, count) in &counts {
        println!("verified {release} {name} {count}");
        match budgets.get(name) {
            Some(budget) if count <= budget => {}
            budget => above.push(format!("{name}: {count}, budget {budget:?}")),
        }
    }
    assert!(counts.len() >= 6 && counts.iter().all(|(_, count)| *count > 1), "{counts:?}");
    assert!(above.is_empty(), "above the budget of programs_live.budget: {}", above.join(", "));
}

#[test]
fn programs_attach_by_clsact_and_by_links_where_there_are_some() {
    let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
    // As the kernel likes it best, and, if that was by links, by filters too.
    let mut ways = vec![false];
    while let Some(clsact) = ways.pop() {
        let bed = Testbed::new(TestbedOptions { nodes: 1, ..TestbedOptions::shaped(Shape::Routed) }).unwrap();
        let pod = bed.add_pod(0, "x/a", PodOptions::default()).unwrap();
        let node = bed.node(0);
        let how = node
            .namespace()
            .run(|| {
                let pins = Pins::new("attached");
                let mut dataplane = pins.open(clsact);
                let index = nix::net::if_::if_nametoindex(pod.veth())?;
                // Twice, since attaching again replaces what is there.
                for _ in 0..2 {
                    dataplane.attach(index, pod.veth(), Hooks::Endpoint)?;
                }
                let filters = |hook: &str| {
                    let mut tc = std::process::Command::new("tc");
                    let output = tc.args(["filter", "show", "dev", pod.veth(), hook]).output().unwrap();
                    String::from_utf8_lossy(&output.stdout).matches(" handle 0x5043 ").count()
                };
                let (linked, filtered) =
                    (dataplane.pinned_devices() == [index], [filters("ingress"), filters("egress")]);
                let how = if dataplane.pins_links() { "tcx" } else { "clsact" };
                match how {
                    "tcx" => assert!(linked && filtered == [0, 0], "{linked}, {filtered:?}"),
                    _ => assert!(!linked && filtered == [1, 1], "{linked}, {filtered:?}"),
                }
                Ok(how)
            })
            .unwrap();
        println!("attached {release} {how}");
        match (clsact, how) {
            (false, "tcx") => ways.push(true),
            (true, "tcx") => panic!("filters were asked for, and links were made"),
            _ => {}
        }
    }
}
