//! How the program is linked: its places that hold addresses are listed in short. A static program can be
//! loaded anywhere, and adjusts these places when it starts; the long list would be megabytes to read.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg=-Wl,-z,pack-relative-relocs");
}
