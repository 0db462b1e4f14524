//! Compiles `schema/*.proto` with a pure-Rust protobuf compiler: no `protoc` is needed.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=schema");
    let mut schemas: Vec<PathBuf> = std::fs::read_dir("schema")?
        .map(|entry| entry.map(|entry| entry.path()))
        .filter(|path| path.as_ref().map_or(true, |path| path.extension().is_some_and(|ext| ext == "proto")))
        .collect::<Result<_, _>>()?;
    schemas.sort();
    prost_build::Config::new().btree_map(["."]).compile_fds(protox::compile(&schemas, ["schema"])?)?;
    Ok(())
}
