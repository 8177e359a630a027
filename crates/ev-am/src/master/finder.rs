//! Finds the pool master among the members and asks it, so that neither a lost member nor a change of master costs
//! more than a moment: the last known master is asked first, all the others side by side soon after.

use std::collections::BTreeSet;
use std::time::Duration;

use ev_core::ids::MemberId;
use ev_core::time::Instant;
use ev_wire::peer::{PeerRequest, PeerResponse};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant as TokioInstant, sleep_until};

use ev_mirror::gate::boot_time;

/// How long the last known master is waited for before the other members are asked as well.
const HEDGE_AFTER: Duration = Duration::from_millis(100);
/// Pause before all members are asked anew when none of them was the master.
const ROUND_PAUSE: Duration = Duration::from_millis(50);
/// Longest wait for one member's answer.
const CALL_TIMEOUT: Duration = Duration::from_millis(700);

/// One member that can be asked.
pub trait Member {
    /// Asks and waits up to `timeout`; `None`: no answer (unreachable, refused, too late).
    fn ask(&self, request: &PeerRequest, timeout: Duration) -> impl Future<Output = Option<PeerResponse>>;
}

/// An answer of the pool master.
#[derive(Debug)]
pub struct Answer {
    /// When the question was put: what a lease counts from.
    pub asked_at: Instant,
    pub master: MemberId,
    pub response: PeerResponse,
}

/// Remembers where the master answered. A member can be listed with several addresses.
#[derive(Debug, Default)]
pub struct Finder {
    master: Option<(usize, MemberId)>,
}

impl Finder {
    /// Asks until the pool master answers or `limit` is over; `None`: no master answered in time.
    ///
    /// The request may reach several members and the master more than once; that does no harm, because reports are
    /// readings and proposals are conditional on the generation that they saw.
    pub async fn ask<M: Member>(
        &mut self,
        members: &[(MemberId, M)],
        request: &PeerRequest,
        limit: Duration,
    ) -> Option<Answer> {
        let deadline = TokioInstant::now() + limit;
        loop {
            // The list may be another one than last time: then the place does not count.
            let first = self.master.filter(|(place, id)| members.get(*place).is_some_and(|(listed, _)| listed == id));
            let round_end = deadline.min(TokioInstant::now() + CALL_TIMEOUT);
            if let Some((place, answer)) = round(members, first.map(|(place, _)| place), request, round_end).await {
                self.master = Some((place, answer.master));
                return Some(answer);
            }
            self.master = None;
            let pause = TokioInstant::now() + ROUND_PAUSE;
            if pause >= deadline {
                return None;
            }
            sleep_until(pause).await;
        }
    }
}

/// Asks `first`, and after a moment (or at once when it is no use) all others; follows what non-masters say, and asks them again
/// while somebody is silent: that may be the old master, and one of them the next. Answers with the master's place in the list too.
async fn round<M: Member>(
    members: &[(MemberId, M)],
    first: Option<usize>,
    request: &PeerRequest,
    end: TokioInstant,
) -> Option<(usize, Answer)> {
    // Those that did not answer yet, and with them those that did since all were asked last.
    let (mut silent, mut asked) = (BTreeSet::new(), BTreeSet::new());
    let mut waiting = FuturesUnordered::new();
    let ask = |place: usize| async move {
        let (master, member) = &members[place];
        let asked_at = boot_time();
        let response = member.ask(request, CALL_TIMEOUT).await;
        (place, *master, asked_at, response)
    };
    // When all others are asked (again).
    let mut hedge = Some(TokioInstant::now());
    let mut first_round = true;
    let hedge_after = |planned: Option<TokioInstant>, first_round: bool| {
        if first_round { Some(TokioInstant::now()) } else { planned.or(Some(TokioInstant::now() + ROUND_PAUSE)) }
    };
    if let Some(place) = first {
        (silent, asked) = ([place].into(), [place].into());
        waiting.push(ask(place));
        hedge = Some(TokioInstant::now() + HEDGE_AFTER);
    }
    loop {
        tokio::select! {
            biased;
            Some((place, master, asked_at, response)) = waiting.next() => match response {
                Some(PeerResponse::NotMaster { master: named }) => {
                    silent.remove(&place);
                    hedge = hedge_after(hedge, first_round);
                    // Whoever knows better may name a member that answered "not me" a moment ago: it is not asked
                    // again before all are.
                    for (place, (id, _)) in members.iter().enumerate() {
                        if Some(*id) == named && asked.insert(place) {
                            silent.insert(place);
                            waiting.push(ask(place));
                        }
                    }
                }
                None | Some(PeerResponse::Failed(_)) => {
                    silent.remove(&place);
                    hedge = hedge_after(hedge, first_round);
                }
                Some(response) => return Some((place, Answer { asked_at, master, response })),
            },
            () = sleep_until(hedge.unwrap_or(end)), if hedge.is_some() => {
                (hedge, first_round) = (None, false);
                asked.clone_from(&silent);
                for place in 0..members.len() {
                    if asked.insert(place) {
                        silent.insert(place);
                        waiting.push(ask(place));
                    }
                }
            }
            () = sleep_until(end) => return None,
        }
        if hedge.is_none() && waiting.is_empty() {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    /// What a simulated member does with a question.
    #[derive(Clone, Copy)]
    enum Does {
        /// It is the master.
        Leads,
        /// It names another member, or none.
        Follows(Option<u64>),
        /// It takes the question and never answers.
        Silent,
        /// It can't be reached, which is known at once.
        Refuses,
    }

    struct Simulated {
        does: Cell<Does>,
        asked: RefCell<u32>,
    }

    impl Member for Simulated {
        async fn ask(&self, _request: &PeerRequest, timeout: Duration) -> Option<PeerResponse> {
            *self.asked.borrow_mut() += 1;
            match self.does.get() {
                Does::Leads => Some(PeerResponse::LibraryPart(None)),
                Does::Follows(master) => Some(PeerResponse::NotMaster { master: master.map(MemberId) }),
                Does::Refuses => None,
                Does::Silent => {
                    tokio::time::sleep(timeout).await;
                    None
                }
            }
        }
    }

    fn members(does: &[Does]) -> Vec<(MemberId, Simulated)> {
        let member = |(place, does): (usize, &Does)| {
            let id = MemberId(u64::try_from(place).unwrap() + 1);
            (id, Simulated { does: Cell::new(*does), asked: RefCell::new(0) })
        };
        does.iter().enumerate().map(member).collect()
    }

    const REQUEST: PeerRequest = PeerRequest::LibraryRead { blake3: String::new(), offset: 0 };

    async fn ask(finder: &mut Finder, members: &[(MemberId, Simulated)]) -> (Option<u64>, Duration) {
        let start = TokioInstant::now();
        let answer = finder.ask(members, &REQUEST, Duration::from_secs(2)).await;
        (answer.map(|answer| answer.master.0), start.elapsed())
    }

    /// It is master after 300 ms.
    async fn ask_while_the_second_is_elected(
        finder: &mut Finder,
        members: &[(MemberId, Simulated)],
    ) -> (Option<u64>, Duration) {
        let elected = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            members[1].1.does.set(Does::Leads);
        };
        tokio::join!(ask(finder, members), elected).0
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_master_is_found_at_once_past_a_silent_member() {
        let members = members(&[Does::Silent, Does::Follows(None), Does::Leads]);
        let (master, took) = ask(&mut Finder::default(), &members).await;
        assert_eq!(master, Some(3));
        assert!(took < Duration::from_millis(5), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_known_master_alone_is_asked() {
        let members = members(&[Does::Leads, Does::Follows(Some(1))]);
        let mut finder = Finder { master: Some((0, MemberId(1))) };
        assert_eq!(ask(&mut finder, &members).await.0, Some(1));
        assert_eq!(*members[1].1.asked.borrow(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_master_that_fell_silent_costs_the_hedge_and_no_more() {
        let members = members(&[Does::Silent, Does::Leads, Does::Follows(Some(2))]);
        let mut finder = Finder { master: Some((0, MemberId(1))) };
        let (master, took) = ask(&mut finder, &members).await;
        assert_eq!(master, Some(2));
        assert!(took <= Duration::from_millis(150), "{took:?}");
        assert_eq!(finder.master, Some((1, MemberId(2))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deposed_master_names_the_new_one() {
        let members = members(&[Does::Follows(Some(3)), Does::Silent, Does::Leads]);
        let mut finder = Finder { master: Some((0, MemberId(1))) };
        let (master, took) = ask(&mut finder, &members).await;
        assert_eq!(master, Some(3));
        assert!(took < Duration::from_millis(5), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_masters_second_address_is_tried_when_the_first_is_silent() {
        let mut members = members(&[Does::Silent, Does::Leads]);
        members[1].0 = MemberId(1);
        let mut finder = Finder { master: Some((0, MemberId(1))) };
        let (master, took) = ask(&mut finder, &members).await;
        assert_eq!(master, Some(1));
        assert!(took <= Duration::from_millis(150), "{took:?}");
        assert_eq!(ask(&mut finder, &members).await.1, Duration::ZERO, "and it is the one that is asked from then on");
    }

    #[tokio::test(start_paused = true)]
    async fn an_election_is_waited_for_by_asking_again() {
        let members = members(&[Does::Refuses, Does::Follows(Some(1)), Does::Follows(None)]);
        let mut finder = Finder { master: Some((0, MemberId(1))) };
        let (master, took) = ask_while_the_second_is_elected(&mut finder, &members).await;
        assert_eq!(master, Some(2));
        assert!(took < Duration::from_millis(400), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_master_is_found_while_the_old_one_says_nothing() {
        let members = members(&[Does::Silent, Does::Follows(Some(1)), Does::Follows(None)]);
        let mut finder = Finder { master: Some((0, MemberId(1))) };
        let (master, took) = ask_while_the_second_is_elected(&mut finder, &members).await;
        assert_eq!(master, Some(2));
        assert!(took <= Duration::from_millis(360), "{took:?}");
        let asked = *members[2].1.asked.borrow();
        assert!(asked <= 8, "not in a hurry: {asked}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_master_it_ends_at_the_limit() {
        let members = members(&[Does::Silent, Does::Refuses]);
        let (master, took) = ask(&mut Finder::default(), &members).await;
        assert_eq!(master, None);
        assert!(took <= Duration::from_millis(2_100), "{took:?}");
    }
}
