//! Events and alerts.

use super::super::fixtures::pool;
use super::super::*;

fn raise(text: &str, severity: Severity) -> Command {
    let alert = Alert {
        since_unix_ms: 7,
        severity,
        object: "h1".to_owned(),
        text: text.to_owned(),
        action: "look at it".to_owned(),
    };
    Command::AlertRaise { key: "key".to_owned(), alert }
}

#[test]
fn an_alert_leaves_an_event_when_it_begins_changes_and_ends() {
    let mut state = pool();
    let first = state.next_event;
    state.must(raise("down", Severity::Error));
    state.must(raise("down", Severity::Error));
    assert_eq!(state.next_event, first + 1, "raised again as it stands: nothing");
    state.must(raise("still down", Severity::Error));
    assert_eq!(state.alerts["key"].text, "still down");
    state.must(Command::AlertClear { key: "key".to_owned() });
    state.must(Command::AlertClear { key: "key".to_owned() });
    assert!(state.alerts.is_empty());
    let texts: Vec<&str> =
        state.events.iter().skip_while(|event| event.number < first).map(|e| e.text.as_str()).collect();
    assert_eq!(texts, ["down", "still down", "over: still down"]);
}

#[test]
fn a_reworded_alert_keeps_its_beginning() {
    let mut state = pool();
    state.must(raise("down", Severity::Warning));
    let Command::AlertRaise { key, mut alert } = raise("down", Severity::Error) else { unreachable!() };
    alert.since_unix_ms = 99;
    state.must(Command::AlertRaise { key, alert });
    assert_eq!((state.alerts["key"].since_unix_ms, state.alerts["key"].severity), (7, Severity::Error));
}

#[test]
fn the_oldest_events_are_dropped_and_numbers_go_on() {
    let mut state = pool();
    let event = |n: usize| Command::EventAdd { severity: Severity::Info, object: "o".into(), text: n.to_string() };
    for n in 0..EVENTS_MAX + 50 {
        state.must(event(n));
    }
    assert_eq!(state.events.len(), EVENTS_MAX);
    assert_eq!(state.events.back().unwrap().number + 1, state.next_event);
    let numbers: Vec<u64> = state.events.iter().map(|event| event.number).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
}

#[test]
fn the_number_of_alerts_has_an_end() {
    let mut state = pool();
    let numbered = |n: usize| {
        let Command::AlertRaise { alert, .. } = raise("down", Severity::Info) else { unreachable!() };
        Command::AlertRaise { key: n.to_string(), alert }
    };
    for n in 0..ALERTS_MAX {
        state.must(numbered(n));
    }
    let outcome = state.run(numbered(ALERTS_MAX));
    assert_eq!(outcome, Outcome::Refused(Refusal::TooMany(ALERTS_MAX)));
    state.must(Command::AlertClear { key: "0".to_owned() });
    state.must(numbered(ALERTS_MAX));
}
