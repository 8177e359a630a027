//! The QMP client against a server that misbehaves.

use std::path::PathBuf;
use std::time::Duration;

use ev_vm::{EventKind, Qmp, QmpError, RunState, Stopped};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;

const SOON: Duration = Duration::from_secs(10);
const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#;

struct Server {
    _folder: tempfile::TempDir,
    path: PathBuf,
    listener: UnixListener,
}

/// One connection of a client.
struct Peer {
    lines: tokio::io::Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
}

impl Server {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp.sock");
        let listener = UnixListener::bind(&path).unwrap();
        Self { _folder: folder, path, listener }
    }

    async fn accept(&self) -> Peer {
        let stream: UnixStream = self.listener.accept().await.unwrap().0;
        let (read, write) = stream.into_split();
        Peer { lines: BufReader::new(read).lines(), write }
    }

    /// A client that has negotiated, and its peer.
    async fn pair(&self) -> (Qmp, Peer) {
        let serve = async {
            let mut peer = self.accept().await;
            peer.say(GREETING).await;
            let id = peer.asked("qmp_capabilities").await;
            peer.answer(id, "{}").await;
            peer
        };
        let (qmp, peer) = tokio::join!(Qmp::connect(&self.path, SOON), serve);
        (qmp.unwrap(), peer)
    }
}

impl Peer {
    async fn say(&mut self, line: &str) {
        self.write.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
    }

    async fn answer(&mut self, id: u64, value: &str) {
        self.say(&format!(r#"{{"return": {value}, "id": {id}}}"#)).await;
    }

    /// Id of the next command, which must be this one.
    async fn asked(&mut self, command: &str) -> u64 {
        let line = self.lines.next_line().await.unwrap().expect("a command");
        let asked: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(asked["execute"], command);
        asked["id"].as_u64().unwrap()
    }
}

#[tokio::test]
async fn answers_find_their_askers_whatever_comes_in_between() {
    let server = Server::new();
    let (qmp, mut peer) = server.pair().await;
    let mut events = qmp.events();
    let serve = async {
        let (first, second) = (peer.asked("query-status").await, peer.asked("query-status").await);
        peer.say(r#"{"event": "UNHEARD_OF", "data": {"x": [1, {"y": null}]}, "timestamp": {}}"#).await;
        peer.answer(99, "{}").await;
        peer.answer(second, r#"{"status": "paused", "running": false}"#).await;
        peer.answer(first, r#"{"status": "running", "new": 1}"#).await;
    };
    let (first, second, ()) = tokio::join!(biased; qmp.status(), qmp.status(), serve);
    assert_eq!((first.unwrap(), second.unwrap()), (RunState::Running, RunState::Paused));
    assert_eq!(events.recv().await.unwrap().kind, EventKind::Other("UNHEARD_OF".to_owned()));
}

#[tokio::test]
async fn a_qemu_that_dies_in_the_middle_is_told_to_all_who_wait() {
    let server = Server::new();
    let (qmp, mut peer) = server.pair().await;
    let mut events = qmp.events();
    let serve = async {
        peer.asked("query-status").await;
        peer.write.write_all(br#"{"return": {"sta"#).await.unwrap();
        drop(peer);
    };
    let (answer, ()) = tokio::join!(qmp.status(), serve);
    assert!(matches!(answer, Err(QmpError::Closed { command }) if command == "query-status"));
    qmp.closed().await;
    assert!(qmp.is_closed());
    assert!(matches!(qmp.cont().await, Err(QmpError::Closed { .. })));
    assert!(matches!(events.recv().await, Err(RecvError::Closed)));
    assert!(matches!(qmp.events().recv().await, Err(RecvError::Closed)));
    // To ask a dead one to quit has reached its aim.
    qmp.quit().await.unwrap();
}

#[tokio::test]
async fn what_is_no_qmp_ends_the_connection() {
    for rubbish in ["rubbish", r#"{"error": {"class": "GenericError", "desc": "what?"}}"#, "[]", "\u{7f}ELF"] {
        let server = Server::new();
        let (qmp, mut peer) = server.pair().await;
        peer.say(rubbish).await;
        tokio::time::timeout(SOON, qmp.closed()).await.expect(rubbish);
    }
}

#[tokio::test]
async fn a_line_without_end_ends_the_connection() {
    let server = Server::new();
    let (qmp, mut peer) = server.pair().await;
    let flood = async {
        let block = vec![b'x'; 1 << 20];
        while peer.write.write_all(&block).await.is_ok() {}
    };
    tokio::time::timeout(SOON, async { tokio::join!(qmp.closed(), flood) }).await.expect("it hangs up");
}

#[tokio::test]
async fn silence_has_its_limits() {
    let server = Server::new();
    // No greeting: another client is being served.
    let waited = Duration::from_millis(50);
    let refused = Qmp::connect(&server.path, waited).await;
    assert!(matches!(refused, Err(QmpError::NoGreeting { .. })), "{refused:?}");
    drop(server);

    let server = Server::new();
    let (qmp, mut peer) = server.pair().await;
    let answer = qmp.execute_within(waited, "query-status", Value::Null).await;
    assert!(matches!(answer, Err(QmpError::TimedOut { .. })), "{answer:?}");
    // The late answer is nobody's; the next one is.
    let late = peer.asked("query-status").await;
    peer.answer(late, r#"{"status": "paused"}"#).await;
    let serve = async {
        let id = peer.asked("query-status").await;
        peer.answer(id, r#"{"status": "running"}"#).await;
    };
    let (status, ()) = tokio::join!(qmp.status(), serve);
    assert_eq!(status.unwrap(), RunState::Running);
}

#[tokio::test]
async fn a_stop_ends_with_whatever_word_comes_first() {
    let server = Server::new();
    let (qmp, mut peer) = server.pair().await;
    let (stopped, ()) = tokio::join!(qmp.stop(), async {
        let id = peer.asked("stop").await;
        peer.say(r#"{"event": "STOP"}"#).await;
        peer.answer(id, "{}").await;
    });
    assert_eq!(stopped.unwrap(), Stopped::Drained);
    let (stopped, ()) = tokio::join!(qmp.stop(), async {
        peer.asked("stop").await;
        peer.say(r#"{"event": "STOP"}"#).await;
    });
    assert_eq!(stopped.unwrap(), Stopped::WaitingForDisks);
    let (stopped, _) = tokio::join!(qmp.stop(), peer.asked("stop"));
    assert_eq!(stopped.unwrap(), Stopped::Unconfirmed);
    // Already stopped: an answer and no event.
    let (stopped, ()) = tokio::join!(qmp.stop(), async {
        let id = peer.asked("stop").await;
        peer.answer(id, "{}").await;
    });
    assert_eq!(stopped.unwrap(), Stopped::Drained);
}
