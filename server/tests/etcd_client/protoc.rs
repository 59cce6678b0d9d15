//! As much of protoc as etcd-client's build asks for, by protox: files to one set of descriptors.
//!
//! Takes `-I DIR`, `-o FILE` and the files; imports are always in the set. A flag without a value is taken for one that
//! changes nothing here. What generates code from the set is prost, not this.

use std::{env, fs, io::Error, path::PathBuf};

fn main() -> Result<(), Error> {
    let (mut includes, mut files, mut output) = (Vec::new(), Vec::new(), None);
    let mut arguments = env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value =
            || arguments.next().map(PathBuf::from).ok_or_else(|| Error::other(format!("{argument:?} needs a value")));
        match argument.to_str() {
            Some("-I") => includes.push(value()?),
            Some("-o") => output = Some(value()?),
            Some(flag) if flag.starts_with("--") => {}
            _ => files.push(PathBuf::from(argument)),
        }
    }
    let output = output.ok_or_else(|| Error::other("-o is missing"))?;
    let mut compiler = protox::Compiler::new(includes).map_err(Error::other)?;
    compiler.include_imports(true).include_source_info(true).open_files(files).map_err(Error::other)?;
    fs::write(output, compiler.encode_file_descriptor_set())
}
