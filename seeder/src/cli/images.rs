//! `shoal-seeder images` and `shoal-seeder show`.

use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use indicatif::HumanBytes;
use serde::Serialize;
use shoal_node::exit::Exit;
use shoal_proto::image::ImageName;
use shoal_seeder::catalog::{Catalog, Facts, Image};

use crate::cli::{Common, print_json};

#[derive(Debug, Args)]
pub(crate) struct Images {}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The image to show
    name: ImageName,
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    image: String,
    #[serde(flatten)]
    facts: &'a Facts,
}

impl<'a> Line<'a> {
    fn of(image: &'a Image) -> Self {
        Self { name: image.name.name.as_str(), image: image.name.image.to_string(), facts: &image.facts }
    }
}

impl Images {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let catalog = Catalog::open(&common.home()?)?;
        let lines: Vec<Line<'_>> = catalog.images().map(Line::of).collect();
        if common.json {
            print_json(&serde_json::json!({ "images": lines }))?;
        } else {
            println!("{:<24} {:>9} {:>12} {:>12}  image", "name", "entries", "raw", "compressed");
            for line in lines {
                let (raw, compressed) =
                    (HumanBytes(line.facts.raw_bytes), HumanBytes(line.facts.compressed_bytes));
                println!(
                    "{:<24} {:>9} {raw:>12} {compressed:>12}  {}",
                    line.name, line.facts.entries, line.image
                );
            }
        }
        Ok(Exit::Done)
    }
}

impl Show {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let catalog = Catalog::open(&common.home()?)?;
        let line = Line::of(catalog.find(&self.name)?);
        if common.json {
            print_json(&line)?;
            return Ok(Exit::Done);
        }
        let facts = line.facts;
        println!("name        {}", line.name);
        println!("image       {}", line.image);
        println!("source      {}", facts.source);
        println!(
            "captured    {}",
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(facts.captured_at_s))
        );
        println!("entries     {}", facts.entries);
        println!("chunks      {} in {} blocks", facts.chunks, facts.blocks);
        println!("raw         {}", HumanBytes(facts.raw_bytes));
        println!("compressed  {}", HumanBytes(facts.compressed_bytes));
        Ok(Exit::Done)
    }
}
