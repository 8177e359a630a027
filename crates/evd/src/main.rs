//! `evd`: the control plane of one host.
#![allow(dead_code)]

mod api;
mod clock;
mod config;
mod durable;
mod facts;
mod heartbeats;
mod http;
mod identity;
mod images;
mod library;
mod local;
mod proxy;

fn main() {
    let _ = config::Config::load(std::path::Path::new(config::DEFAULT_PATH));
}
