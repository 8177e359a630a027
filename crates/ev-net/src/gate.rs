//! Whether a frame of the guest may leave the host, asked at the moment it leaves.

/// Asked by the pump's thread for each frame that the guest sends, just before it is written to the TAP. It must
/// not block. `ev-am` puts the lease behind it.
pub trait FrameGate: Send + Sync + 'static {
    /// Whether a frame may leave now.
    fn is_open(&self) -> bool;
}

/// Always open.
#[derive(Debug, Clone, Copy)]
pub struct OpenGate;

impl FrameGate for OpenGate {
    fn is_open(&self) -> bool {
        true
    }
}

impl<F> FrameGate for F
where
    F: Fn() -> bool + Send + Sync + 'static,
{
    fn is_open(&self) -> bool {
        self()
    }
}
