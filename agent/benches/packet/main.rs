//! `cargo xtask bench`: what the programs cost per packet, by BPF_PROG_TEST_RUN. docs/performance.md says what each line is.

#![expect(clippy::print_stdout, reason = "the table is the answer")]

mod cases;
mod frame;
mod kernel;
mod report;
mod world;

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use cases::{Case, Shot};
use clap::Parser;
use world::World;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Nanoseconds per packet of the packet programs.
#[derive(Parser)]
struct Arguments {
    /// Where the figures go as JSON
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
    /// Samples of each case; the least counts
    #[arg(long, default_value_t = 60)]
    rounds: u32,
    /// Packets of one sample
    #[arg(long, default_value_t = 8000)]
    packets: u32,
    /// Only cases with this in their name
    #[arg(long, default_value = "")]
    only: String,
    /// A third of the samples
    #[arg(long)]
    quick: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// The samples of one case.
pub(crate) struct Measured {
    pub(crate) case: Case,
    pub(crate) samples: Vec<u32>,
}

fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    if arguments.quick {
        arguments.rounds = arguments.rounds.min(20);
    }
    let mut worlds = Vec::new();
    for rules in [1, 100, 10_000] {
        eprintln!("{rules} rules: loading");
        worlds.push(World::new(rules)?);
    }
    let mut measured: Vec<Measured> = worlds
        .iter()
        .flat_map(|world| cases::all(world.rules))
        .filter(|case| case.name.contains(&arguments.only))
        .map(|case| Measured { case, samples: Vec::new() })
        .collect();
    let mut programs = Programs::of(&mut worlds)?;
    let (mut plain, mut rotated) = (Vec::new(), Vec::new());
    for round in 0..arguments.rounds {
        let idle = Shot { program: "nothing", ..measured[0].case.shot.clone() };
        let idle = Shot { answer: cases::PASS, ..idle };
        plain.push(programs.shoot(1, &idle, false, arguments.packets)?);
        rotated.push(programs.shoot(1, &idle, true, arguments.packets)?);
        for Measured { case, samples } in &mut measured {
            let world = worlds.iter().find(|world| world.rules == case.rules).ok_or("no such world")?;
            world.image.set_flags(case.flags);
            for shot in &case.before {
                programs.shoot(case.rules, shot, false, 1)?;
            }
            // Where every packet is of another flow, no round begins where the last did.
            let mut shot = case.shot.clone();
            if case.rotates {
                let port = (round.wrapping_mul(arguments.packets) as u16).to_ne_bytes();
                shot.frame[frame::SOURCE_PORT..frame::SOURCE_PORT + 2].copy_from_slice(&port);
            }
            let sample = programs.shoot(case.rules, &shot, case.rotates, arguments.packets);
            samples.push(sample.map_err(|error| format!("{}, {} rules: {error}", case.name, case.rules))?);
        }
    }
    report::print(&measured, &plain, &rotated, &arguments.json)
}

/// Every program, and the rotating one in front of it.
struct Programs {
    plain: HashMap<(u32, &'static str), OwnedFd>,
    rotating: HashMap<(u32, &'static str), (OwnedFd, OwnedFd)>,
}

impl Programs {
    fn of(worlds: &mut [World]) -> Result<Self> {
        let mut programs = Self { plain: HashMap::new(), rotating: HashMap::new() };
        for world in worlds {
            for name in ["from_pod", "to_pod", "to_uplink", "from_uplink", "nothing"] {
                let info = world.dataplane.program(name)?.info()?;
                if world.rules == 1 {
                    eprintln!(
                        "{name}: {:?} instructions verified, {} bytes",
                        info.verified_instruction_count(),
                        info.size_jitted()
                    );
                }
                let program = world.dataplane.program(name)?.fd()?.as_fd().try_clone_to_owned()?;
                programs.rotating.insert((world.rules, name), kernel::in_front_of(program.as_fd())?);
                programs.plain.insert((world.rules, name), program);
            }
        }
        Ok(programs)
    }

    fn shoot(&mut self, rules: u32, shot: &Shot, rotates: bool, repeat: u32) -> Result<u32> {
        let key = (rules, shot.program);
        let program: Option<BorrowedFd<'_>> = if rotates {
            self.rotating.get(&key).map(|(program, _)| program.as_fd())
        } else {
            self.plain.get(&key).map(AsFd::as_fd)
        };
        let program = program.ok_or("no such program")?;
        let (answer, nanoseconds) = kernel::run(program, &shot.frame, &shot.context, repeat)?;
        if answer != shot.answer && shot.answer != cases::ANY {
            return Err(format!("{} answered {answer}, not {}", shot.program, shot.answer).into());
        }
        Ok(nanoseconds)
    }
}
