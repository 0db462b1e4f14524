//! `shoal-seeder secret`.

use clap::{Args, Subcommand};
use shoal_node::durable;
use shoal_node::exit::Exit;
use shoal_seeder::control;
use shoal_seeder::home::{Error as HomeError, Home};
use shoal_seeder::serve::{RotationReport, Step};
use shoal_seeder::swarms;

use crate::cli::{Common, print_json};

#[derive(Debug, Args)]
pub(crate) struct Secret {
    #[command(subcommand)]
    step: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Draw the next secret: new tickets name it, old ones still open the swarm
    Rotate,
    /// Let old tickets open nothing any more
    Finish,
}

impl Secret {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let step = match self.step {
            What::Rotate => Step::Rotate,
            What::Finish => Step::Finish,
        };
        let home = common.home()?;
        let report = match home.lock() {
            Ok(_lock) => at_rest(&home, step)?,
            Err(HomeError::File(durable::Error::InUse { .. })) => {
                shoal_node::peer::runtime()?.block_on(control::rotate(&home, step))?
            }
            Err(error) => return Err(error.into()),
        };
        if common.json {
            print_json(&report)?;
        } else if report.rotating {
            println!("new tickets name the next secret; the old one opens the swarm until `secret finish`");
        } else {
            println!("the old secret opens nothing any more");
        }
        Ok(Exit::Done)
    }
}

/// Where no seeder runs there is nobody to serve.
fn at_rest(home: &Home, step: Step) -> anyhow::Result<RotationReport> {
    match step {
        Step::Rotate => {
            home.draw_next_secret()?;
        }
        Step::Finish if home.next_secret()?.is_none() => return Err(swarms::Error::NotRotating.into()),
        Step::Finish => home.adopt_next_secret()?,
    }
    Ok(RotationReport { rotating: step == Step::Rotate, addresses: Vec::new() })
}
