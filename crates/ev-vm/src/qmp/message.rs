//! What goes over the wire: commands out, greetings, answers and events in. Fields and events that are not known are
//! passed over, so that other versions of QEMU work too.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Event, EventKind, RunState, ShutdownReason};

/// A line from QEMU.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    /// The first line of a connection.
    Greeting,
    /// The answer to the command with this id.
    Answer { id: u64, result: Result<Value, Refusal> },
    /// Something happened.
    Event(Event),
    /// An answer without id: QEMU could not read what we sent.
    NotUnderstood(Refusal),
}

/// QEMU's way to say no.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Refusal {
    pub class: String,
    pub desc: String,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    id: Option<u64>,
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

/// Reads one line. `None`: it is no QMP.
pub(super) fn parse(line: &str) -> Option<Message> {
    let line: Line = serde_json::from_str(line).ok()?;
    if let Some(name) = line.event {
        return Some(Message::Event(event(&name, line.data)));
    }
    match (line.greeting, line.answer, line.error, line.id) {
        (Some(_), ..) => Some(Message::Greeting),
        (None, Some(value), None, Some(id)) => Some(Message::Answer { id, result: Ok(value) }),
        (None, None, Some(refusal), Some(id)) => Some(Message::Answer { id, result: Err(refusal) }),
        (None, None, Some(refusal), None) => Some(Message::NotUnderstood(refusal)),
        (None, ..) => None,
    }
}

/// One command as a line.
pub(super) fn command_line(id: u64, command: &str, arguments: &Value) -> String {
    let mut line = match arguments {
        Value::Null => json!({ "execute": command, "id": id }),
        other => json!({ "execute": command, "id": id, "arguments": other }),
    }
    .to_string();
    line.push('\n');
    line
}

fn event(name: &str, data: Value) -> Event {
    let text = |key: &str| data.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let kind = match name {
        "SHUTDOWN" => EventKind::Shutdown(shutdown_reason(&text("reason"))),
        "POWERDOWN" => EventKind::Powerdown,
        "RESET" => EventKind::Reset,
        "STOP" => EventKind::Stop,
        "RESUME" => EventKind::Resume,
        "BLOCK_IO_ERROR" => EventKind::BlockIoError {
            device: Some(text("node-name")).filter(|name| !name.is_empty()).unwrap_or_else(|| text("device")),
            operation: text("operation"),
            stopped: text("action") == "stop",
            reason: text("reason"),
        },
        "GUEST_PANICKED" => EventKind::GuestPanicked,
        "NETDEV_STREAM_CONNECTED" => EventKind::NicConnected(text("netdev-id")),
        "NETDEV_STREAM_DISCONNECTED" => EventKind::NicDisconnected(text("netdev-id")),
        other => EventKind::Other(other.to_owned()),
    };
    Event { kind, data }
}

fn shutdown_reason(name: &str) -> ShutdownReason {
    match name {
        "guest-shutdown" => ShutdownReason::GuestShutdown,
        "guest-reset" => ShutdownReason::GuestReset,
        "guest-panic" => ShutdownReason::GuestPanic,
        "host-qmp-quit" => ShutdownReason::HostQmpQuit,
        "host-signal" => ShutdownReason::HostSignal,
        other => ShutdownReason::Other(other.to_owned()),
    }
}

/// `status` of `query-status`.
pub(crate) fn run_state(name: &str) -> RunState {
    match name {
        "running" => RunState::Running,
        "paused" | "prelaunch" => RunState::Paused,
        "shutdown" => RunState::Shutdown,
        "io-error" => RunState::IoError,
        "guest-panicked" => RunState::GuestPanicked,
        "internal-error" => RunState::InternalError,
        other => RunState::Other(other.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_events_and_unknown_fields_are_read() {
        assert_eq!(parse(r#"{"QMP":{"version":{},"capabilities":["oob"]},"new":1}"#), Some(Message::Greeting));
        assert_eq!(
            parse(r#"{"return":{},"id":7,"later":true}"#),
            Some(Message::Answer { id: 7, result: Ok(json!({})) })
        );
        let Some(Message::Event(event)) = parse(
            r#"{"timestamp":{"seconds":1,"microseconds":2},"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-shutdown"}}"#,
        ) else {
            panic!("no event")
        };
        assert_eq!(event.kind, EventKind::Shutdown(ShutdownReason::GuestShutdown));
        let Some(Message::Event(event)) = parse(r#"{"event":"FROM_THE_FUTURE"}"#) else { panic!("no event") };
        assert_eq!(event.kind, EventKind::Other("FROM_THE_FUTURE".to_owned()));
    }

    #[test]
    fn refusals_carry_their_class() {
        let refusal = Refusal { class: "CommandNotFound".to_owned(), desc: "no".to_owned() };
        assert_eq!(
            parse(r#"{"id":3,"error":{"class":"CommandNotFound","desc":"no"}}"#),
            Some(Message::Answer { id: 3, result: Err(refusal.clone()) })
        );
        assert_eq!(
            parse(r#"{"error":{"class":"CommandNotFound","desc":"no"}}"#),
            Some(Message::NotUnderstood(refusal))
        );
    }

    #[test]
    fn what_is_no_qmp_is_told() {
        for bad in ["", "hello", "[]", "{}", r#"{"return":{}}"#, r#"{"id":-1,"return":{}}"#, r#"{"event":5}"#] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
