//! Generates the Protobuf messages of `proto/cabrank.v1.proto` without a system `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/cabrank.v1.proto");
    let files = protox::compile(["proto/cabrank.v1.proto"], ["proto"])?;
    prost_build::Config::new().compile_fds(files)?;
    Ok(())
}
