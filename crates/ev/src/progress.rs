//! Progress bars, on standard error and only where a person looks.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::Format;

/// A bar over bytes with rate and time left. Hidden for JSON, and where standard error is no terminal.
pub fn bytes(format: Format, total_bytes: u64, what: &str) -> ProgressBar {
    let target = match format {
        Format::Table => ProgressDrawTarget::stderr(),
        Format::Json => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(total_bytes), target);
    let template = "{msg:24} {bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar
}
