//! Compiles every schema in `schema/` with a protobuf compiler in Rust: no `protoc` is needed to build Shoal.

use std::error::Error;
use std::fs;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new("schema");
    println!("cargo:rerun-if-changed={}", folder.display());
    let mut schemas = Vec::new();
    for item in fs::read_dir(folder)? {
        let path = item?.path();
        if path.extension().is_some_and(|extension| extension == "proto") {
            println!("cargo:rerun-if-changed={}", path.display());
            schemas.push(path);
        }
    }
    schemas.sort();
    let descriptors = protox::compile(&schemas, [folder])?;
    prost_build::Config::new().compile_fds(descriptors)?;
    Ok(())
}
