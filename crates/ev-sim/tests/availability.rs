//! Ten thousand schedules of faults for the engines that decide who may run a guest.
//!
//! Rules that were broken by hand, one at a time, and seen to fail here:
//!
//! | rule broken | caught as |
//! |---|---|
//! | the master does not wait for the lease | two open gates |
//! | a new master does not wait for its predecessor's leases | two open gates |
//! | the lease counts from the answer's arrival instead of the asking | two open gates |
//! | a lease is granted while a takeover may yet be committed | two open gates |
//! | a proposal that was not answered is taken for lost (seed 5444) | two open gates |
//! | the durable marker is ignored | a second start under one record |
//! | a new process lets out before what an earlier one asked for is ruled out (seeds 250, 4177, 9827) | a start without what was acknowledged |
//! | old confirmations are acted on (seed 175) | frames long after the guest was seen elsewhere |
//! | a guest that goes on lets out without a lease (seed 4266) | acts without a lease against the record |
//! | a guest at level 3 whose memory nobody holds needs no lease (seed 1631) | acts without a lease against the record |
//! | its takeover waits for no lease (seed 4266) | two open gates |
//! | a wish that the memory be on record outlives the record (seed 375) | goes on without what was seen |
//! | from level 3 to 2 the standby's replicas stay good (seed 1603) | a start without what was acknowledged |
//! | a lost standby's disks or memory stay (seed 4) | nobody acts at the end: output waits for ever |

use ev_sim::availability::{Summary, run};
use ev_sim::schedules::{all_are_run, for_each_seed};

#[test]
fn never_two_owners_and_always_back() {
    let mut sum = Summary::default();
    for_each_seed(10_000, |seed| sum.add(run(seed)));
    if all_are_run() {
        assert!(sum.takeovers > 2_000, "the faults do not bite: {sum:?}");
        assert!(sum.went_on > 1_000 && sum.went_on_from_frozen > 200, "too little happens at level 3: {sum:?}");
    }
}
