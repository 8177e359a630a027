//! `evd`: the control plane of one host.

mod config;

fn main() {
    let _ = config::Config::load(std::path::Path::new(config::DEFAULT_PATH));
}
