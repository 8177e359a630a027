//! Which stream goes over which path to the partner: the decisions, without the sockets.
//!
//! ```text
//!              best path up                  connected
//!   [ idle ] ───────────────► [ connecting ] ──────────► [ connected ]
//!      ▲  ▲     refused, path down │                       │       │ over the management network, and a private link
//!      │  └────────────────────────┘                       │       ▼ has been steady for MOVE_BACK_AFTER
//!      └───────────────────────────────────────────────────┘   [ connecting ], the old stream stays until then
//!                 stream ended, path down
//! ```
//!
//! Paths are numbered in the order of preference: private links first, the management network last. A stream is not moved from
//! one private link to another: that would break what goes over it and win nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use ev_core::time::Instant;

use super::message::Channel;

/// How long a private link must have been up without a break before a working stream is moved back to it: a link that
/// flaps must not take the stream along.
pub const MOVE_BACK_AFTER: Duration = Duration::from_secs(5);
/// Pause after a refused or broken stream before it is tried again over the same path.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// The management network is taken when it has been up for so long: at the start all paths come up within moments of each other, and a
/// stream that must move a few seconds later breaks what goes over it.
const PRIVATE_LINK_WAIT: Duration = Duration::from_millis(1_000);
/// What is said of a stream so soon after it was connected is about the one that it replaced. If not, it is said again.
const REPLACED_SAID: Duration = Duration::from_millis(200);

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkEvent {
    /// The partner answers on this path.
    PathUp(usize),
    /// The partner was silent on this path for too long.
    PathDown(usize),
    Connected {
        channel: Channel,
        path: usize,
    },
    Refused {
        channel: Channel,
        path: usize,
    },
    /// The stream ended or was given up by whoever had it.
    StreamDown {
        channel: Channel,
    },
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkAction {
    /// Connect this stream over this path; when it stands it replaces the old one.
    Connect { channel: Channel, path: usize },
    /// Break the stream, so that its user notices at once.
    Cut { channel: Channel },
}

#[derive(Debug, Clone, Copy)]
enum Stream {
    Idle { retry_at: Instant },
    Connecting { path: usize, old: Option<usize> },
    Connected { path: usize, since: Instant, move_at: Instant },
}

/// The state of all paths and streams.
#[derive(Debug)]
pub struct Board {
    /// Since when each path has been up.
    paths: Vec<Option<Instant>>,
    streams: BTreeMap<Channel, Stream>,
}

impl Board {
    #[must_use]
    pub fn new(paths: usize, channels: impl IntoIterator<Item = Channel>) -> Self {
        let streams = channels.into_iter().map(|channel| (channel, Stream::Idle { retry_at: Instant(0) })).collect();
        Self { paths: vec![None; paths], streams }
    }

    /// Whether the partner answers on any path.
    #[must_use]
    pub fn partner_heard(&self) -> bool {
        self.paths.iter().any(Option::is_some)
    }

    pub fn step(&mut self, now: Instant, event: LinkEvent, out: &mut Vec<LinkAction>) {
        match event {
            LinkEvent::PathUp(path) => {
                let state = &mut self.paths[path];
                *state = state.or(Some(now));
            }
            LinkEvent::PathDown(path) => self.path_down(now, path, out),
            LinkEvent::Connected { channel, path } => {
                if let Some(stream) = self.streams.get_mut(&channel)
                    && matches!(stream, Stream::Connecting { path: wanted, .. } if *wanted == path)
                {
                    *stream = Stream::Connected { path, since: now, move_at: now };
                }
            }
            LinkEvent::Refused { channel, path } => self.refused(now, channel, path),
            LinkEvent::StreamDown { channel } => self.stream_down(now, channel),
            LinkEvent::Tick => {}
        }
        self.connect(now, out);
    }

    fn path_down(&mut self, now: Instant, path: usize, out: &mut Vec<LinkAction>) {
        self.paths[path] = None;
        for (channel, stream) in &mut self.streams {
            match *stream {
                Stream::Connected { path: used, .. } if used == path => {
                    out.push(LinkAction::Cut { channel: *channel });
                    *stream = Stream::Idle { retry_at: now };
                }
                Stream::Connecting { path: wanted, old: Some(old) } if wanted == path => {
                    *stream = Stream::Connected { path: old, since: Instant(0), move_at: now };
                }
                Stream::Connecting { path: wanted, old: None } if wanted == path => {
                    *stream = Stream::Idle { retry_at: now };
                }
                Stream::Connecting { path: wanted, old: Some(old) } if old == path => {
                    out.push(LinkAction::Cut { channel: *channel });
                    *stream = Stream::Connecting { path: wanted, old: None };
                }
                Stream::Idle { .. } | Stream::Connecting { .. } | Stream::Connected { .. } => {}
            }
        }
    }

    fn refused(&mut self, now: Instant, channel: Channel, path: usize) {
        let Some(stream) = self.streams.get_mut(&channel) else { return };
        match *stream {
            Stream::Connecting { path: wanted, old } if wanted == path => {
                *stream = match old {
                    Some(path) => Stream::Connected { path, since: Instant(0), move_at: now.after(MOVE_BACK_AFTER) },
                    None => Stream::Idle { retry_at: now.after(RETRY_AFTER) },
                };
            }
            Stream::Idle { .. } | Stream::Connecting { .. } | Stream::Connected { .. } => {}
        }
    }

    fn stream_down(&mut self, now: Instant, channel: Channel) {
        let Some(stream) = self.streams.get_mut(&channel) else { return };
        *stream = match *stream {
            Stream::Connected { path, since, move_at } if now < since.after(REPLACED_SAID) => {
                Stream::Connected { path, since, move_at }
            }
            Stream::Connected { .. } => Stream::Idle { retry_at: now.after(RETRY_AFTER) },
            Stream::Connecting { path, .. } => Stream::Connecting { path, old: None },
            Stream::Idle { retry_at } => Stream::Idle { retry_at },
        };
    }

    fn connect(&mut self, now: Instant, out: &mut Vec<LinkAction>) {
        let Some(best) = self.paths.iter().position(Option::is_some) else { return };
        let steady = self.paths[best].is_some_and(|since| now >= since.after(MOVE_BACK_AFTER));
        let settled = self.paths[best].is_some_and(|since| now >= since.after(PRIVATE_LINK_WAIT));
        // The last of several.
        let management = Some(self.paths.len() - 1).filter(|last| *last > 0);
        let is_private = Some(best) != management;
        for (channel, stream) in &mut self.streams {
            let old = match *stream {
                Stream::Idle { retry_at } if now >= retry_at && (is_private || settled) => None,
                Stream::Connected { path, move_at, .. }
                    if Some(path) == management && is_private && steady && now >= move_at =>
                {
                    Some(path)
                }
                Stream::Idle { .. } | Stream::Connecting { .. } | Stream::Connected { .. } => continue,
            };
            *stream = Stream::Connecting { path: best, old };
            out.push(LinkAction::Connect { channel: *channel, path: best });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ev_core::ids::DiskId;
    use uuid::Uuid;

    const DISK: Channel = Channel::Disk(DiskId(Uuid::from_u128(1)));
    const MS: u64 = 1_000_000;
    /// Of three paths.
    const MANAGEMENT: usize = 2;

    fn step(board: &mut Board, at_ms: u64, event: LinkEvent) -> Vec<LinkAction> {
        let mut out = Vec::new();
        board.step(Instant(at_ms * MS), event, &mut out);
        out
    }

    fn connected_over(path: usize) -> Board {
        let mut board = Board::new(3, [DISK]);
        let connect = [LinkAction::Connect { channel: DISK, path }];
        let start = if path < MANAGEMENT {
            assert_eq!(step(&mut board, 0, LinkEvent::PathUp(path)), connect);
            0
        } else {
            assert_eq!(step(&mut board, 0, LinkEvent::PathUp(path)), [], "a private link may come up in a moment");
            assert_eq!(step(&mut board, 1_000, LinkEvent::Tick), connect);
            1_000
        };
        assert_eq!(step(&mut board, start + 1, LinkEvent::Connected { channel: DISK, path }), []);
        board
    }

    #[test]
    fn nothing_is_tried_while_no_path_answers() {
        let mut board = Board::new(2, [DISK]);
        assert_eq!(step(&mut board, 10, LinkEvent::Tick), []);
        assert!(!board.partner_heard());
    }

    #[test]
    fn a_silent_path_is_left_at_once_for_the_next_one() {
        let mut board = connected_over(0);
        assert_eq!(step(&mut board, 2, LinkEvent::PathUp(2)), []);
        let actions = step(&mut board, 1_500, LinkEvent::PathDown(0));
        assert_eq!(actions, [LinkAction::Cut { channel: DISK }, LinkAction::Connect { channel: DISK, path: 2 }]);
    }

    #[test]
    fn a_stream_stays_on_the_private_link_that_it_is_on() {
        let mut board = connected_over(1);
        for at in [100, 5_100, 60_000] {
            assert_eq!(step(&mut board, at, LinkEvent::PathUp(0)), []);
        }
        let actions = step(&mut board, 70_000, LinkEvent::PathDown(1));
        assert_eq!(actions, [LinkAction::Cut { channel: DISK }, LinkAction::Connect { channel: DISK, path: 0 }]);
    }

    #[test]
    fn a_private_link_is_taken_again_when_it_has_been_steady() {
        let mut board = connected_over(MANAGEMENT);
        assert_eq!(step(&mut board, 1_100, LinkEvent::PathUp(0)), []);
        assert_eq!(step(&mut board, 4_000, LinkEvent::PathDown(0)), []);
        assert_eq!(step(&mut board, 4_100, LinkEvent::PathUp(0)), []);
        assert_eq!(step(&mut board, 9_000, LinkEvent::Tick), []);
        assert_eq!(step(&mut board, 9_100, LinkEvent::Tick), [LinkAction::Connect { channel: DISK, path: 0 }]);
        // Refused: the old stream is still there, nothing is cut, and the next attempt waits.
        assert_eq!(step(&mut board, 9_101, LinkEvent::Refused { channel: DISK, path: 0 }), []);
        assert_eq!(step(&mut board, 14_100, LinkEvent::Tick), []);
        assert_eq!(step(&mut board, 14_101, LinkEvent::Tick), [LinkAction::Connect { channel: DISK, path: 0 }]);
        assert_eq!(step(&mut board, 14_102, LinkEvent::Connected { channel: DISK, path: 0 }), []);
        assert_eq!(step(&mut board, 14_103, LinkEvent::PathDown(MANAGEMENT)), []);
    }

    #[test]
    fn a_broken_stream_is_tried_again_after_a_pause() {
        let mut board = connected_over(0);
        assert_eq!(step(&mut board, 200, LinkEvent::StreamDown { channel: DISK }), [], "of the one before");
        assert_eq!(step(&mut board, 330, LinkEvent::Tick), []);
        assert_eq!(step(&mut board, 360, LinkEvent::StreamDown { channel: DISK }), []);
        assert_eq!(step(&mut board, 400, LinkEvent::Tick), []);
        assert_eq!(step(&mut board, 460, LinkEvent::Tick), [LinkAction::Connect { channel: DISK, path: 0 }]);
        assert_eq!(step(&mut board, 461, LinkEvent::Refused { channel: DISK, path: 0 }), []);
        assert_eq!(step(&mut board, 561, LinkEvent::Tick), [LinkAction::Connect { channel: DISK, path: 0 }]);
    }

    #[test]
    fn the_old_path_dying_during_a_move_cuts_the_old_stream() {
        let mut board = connected_over(MANAGEMENT);
        step(&mut board, 2_000, LinkEvent::PathUp(0));
        assert_eq!(step(&mut board, 7_000, LinkEvent::Tick), [LinkAction::Connect { channel: DISK, path: 0 }]);
        assert_eq!(step(&mut board, 7_001, LinkEvent::PathDown(MANAGEMENT)), [LinkAction::Cut { channel: DISK }]);
        assert_eq!(step(&mut board, 7_002, LinkEvent::Connected { channel: DISK, path: 0 }), []);
    }

    #[test]
    fn an_event_of_an_unknown_disk_changes_nothing() {
        let mut board = connected_over(0);
        let other = Channel::Disk(DiskId(Uuid::from_u128(9)));
        assert_eq!(step(&mut board, 5, LinkEvent::StreamDown { channel: other }), []);
        assert_eq!(step(&mut board, 5, LinkEvent::Connected { channel: other, path: 0 }), []);
    }
}
