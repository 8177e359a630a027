//! Comparisons of both replicas: begun when asked for, and what came of the last one.

use std::time::{SystemTime, UNIX_EPOCH};

use ev_core::mirror::{Input, Verified};
use ev_core::report::Comparison;

use super::Thread;
use super::engine::Engine;

impl Thread {
    pub fn compare(&mut self, repair: bool, bytes_per_s: Option<u64>) {
        self.coordinate(Input::Verify { repair, bytes_per_s });
    }

    /// The engine has ended one.
    pub fn compared(&mut self, verified: Verified) {
        tracing::info!(disk = %self.spec.disk, ?verified, "both replicas were compared");
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.last_comparison = Some(self.comparison_of(verified, Some(now)));
    }

    /// The one under way, or the last one.
    pub fn comparison(&self) -> Option<Comparison> {
        let under_way = match &self.engine {
            Engine::Coordinator(coordinator) => coordinator.comparison(),
            Engine::Idle(_) | Engine::Replica(_) => None,
        };
        under_way.map(|verified| self.comparison_of(verified, None)).or(self.last_comparison)
    }

    fn comparison_of(&self, verified: Verified, ended_unix_ms: Option<u64>) -> Comparison {
        let Verified { compared_bytes, different_bytes, repaired_bytes, complete } = verified;
        let total_bytes = self.spec.size_bytes;
        Comparison { total_bytes, compared_bytes, different_bytes, repaired_bytes, ended_unix_ms, complete }
    }
}
