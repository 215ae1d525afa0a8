//! Both sides of a connection prove to each other that they know a key, without sending it.
//!
//! The messages are those of Python's `multiprocessing.connection` (3.12 and newer): each side in turn sends
//! `#CHALLENGE#{sha256}` and random bytes, gets `{sha256}` and the HMAC of all that follows `#CHALLENGE#` under the key,
//! and answers `#WELCOME#` or `#FAILURE#`. HMAC: RFC 2104.

use std::io;

use hmac_sha256::HMAC;

use super::Connection;
use crate::deadline::Deadline;

const CHALLENGE: &[u8] = b"#CHALLENGE#";
const WELCOME: &[u8] = b"#WELCOME#";
const FAILURE: &[u8] = b"#FAILURE#";
const DIGEST: &[u8] = b"{sha256}";
const RANDOM_LEN: usize = 40;
/// No message of the exchange is longer; what is, is not read.
const LONGEST: usize = 256;

/// The other side did not prove that it knows the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// It answered the challenge wrong: it has another key.
    #[error("the other side has another key")]
    WrongKey,
    /// It refused our answer: it has another key.
    #[error("the other side refused our key")]
    Refused,
    /// It did not say what belongs here.
    #[error("the other side does not speak the protocol of authentication")]
    Protocol,
    /// It said nothing in time, or went.
    #[error("the other side did not answer: {0}")]
    Silent(#[from] io::Error),
}

fn receive(connection: &Connection, deadline: Deadline) -> Result<Vec<u8>, AuthError> {
    let message = loop {
        match connection.receive(deadline) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => break received?,
        }
    };
    let message = message.ok_or(AuthError::Silent(io::ErrorKind::UnexpectedEof.into()))?;
    if message.head.len() <= LONGEST && message.fds.is_empty() { Ok(message.head) } else { Err(AuthError::Protocol) }
}

fn send(connection: &Connection, parts: &[&[u8]], deadline: Deadline) -> Result<(), AuthError> {
    let bytes = parts.concat();
    loop {
        match connection.send(&bytes, &[], deadline) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            sent => return Ok(sent?),
        }
    }
}

/// Whether `answer` is right for what followed `#CHALLENGE#`. In constant time.
fn is_right(key: &[u8], challenge: &[u8], answer: &[u8]) -> bool {
    let expected = HMAC::mac(challenge, key);
    let Some(answer) = answer.strip_prefix(DIGEST) else { return false };
    answer.len() == expected.len() && answer.iter().zip(expected).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// What follows `#CHALLENGE#` in a message that asks for SHA-256.
fn challenge_of(message: &[u8]) -> Option<&[u8]> {
    message.strip_prefix(CHALLENGE).filter(|challenge| challenge.starts_with(DIGEST) && challenge.len() >= 28)
}

/// Has the other side prove that it knows the key.
pub(super) fn deliver_challenge(connection: &Connection, key: &[u8], deadline: Deadline) -> Result<(), AuthError> {
    let mut random = [0; RANDOM_LEN];
    crate::sys::random(&mut random)?;
    let challenge = [DIGEST, &random].concat();
    send(connection, &[CHALLENGE, &challenge], deadline)?;
    if is_right(key, &challenge, &receive(connection, deadline)?) {
        return send(connection, &[WELCOME], deadline);
    }
    // The other side may have gone; that its key is wrong is what matters.
    let _ = send(connection, &[FAILURE], deadline);
    Err(AuthError::WrongKey)
}

/// Proves to the other side that we know the key.
pub(super) fn answer_challenge(connection: &Connection, key: &[u8], deadline: Deadline) -> Result<(), AuthError> {
    let message = receive(connection, deadline)?;
    let challenge = challenge_of(&message).ok_or(AuthError::Protocol)?;
    send(connection, &[DIGEST, &HMAC::mac(challenge, key)], deadline)?;
    match receive(connection, deadline)? {
        answer if answer == WELCOME => Ok(()),
        answer if answer == FAILURE => Err(AuthError::Refused),
        _ => Err(AuthError::Protocol),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both sides of an exchange with these keys.
    fn exchange(ours: &[u8], theirs: &[u8]) -> (Result<(), AuthError>, Result<(), AuthError>) {
        let (one, other) = Connection::pair().expect("a socket pair");
        std::thread::scope(|scope| {
            let answering = scope.spawn(move || answer_challenge(&other, theirs, Deadline::NEVER));
            let delivered = deliver_challenge(&one, ours, Deadline::NEVER);
            (delivered, answering.join().expect("no panic"))
        })
    }

    #[test]
    fn who_knows_the_key_is_let_in() {
        assert!(matches!(exchange(b"open sesame", b"open sesame"), (Ok(()), Ok(()))));
        assert!(matches!(
            exchange(b"open sesame", b"open barley"),
            (Err(AuthError::WrongKey), Err(AuthError::Refused))
        ));
    }

    #[test]
    fn nonsense_is_refused() {
        for bytes in [&b""[..], b"#CHALLENGE#", b"#CHALLENGE#{md5}aaaaaaaaaaaaaaaaaaaaaaaaaaaa", &[7; 300]] {
            let (one, other) = Connection::pair().expect("a socket pair");
            other.send(bytes, &[], Deadline::NEVER).expect("room");
            assert!(matches!(answer_challenge(&one, b"key", Deadline::NEVER), Err(AuthError::Protocol)));
        }
        let (one, other) = Connection::pair().expect("a socket pair");
        assert!(matches!(answer_challenge(&one, b"key", Deadline::PASSED), Err(AuthError::Silent(_))));
        drop(other);
        assert!(matches!(deliver_challenge(&one, b"key", Deadline::NEVER), Err(AuthError::Silent(_))));
    }

    #[test]
    fn the_answer_is_that_of_the_reference() {
        // RFC 4231, test case 2.
        let mac = HMAC::mac(b"what do ya want for nothing?", b"Jefe");
        assert!(is_right(b"Jefe", b"what do ya want for nothing?", &[DIGEST, &mac].concat()));
        assert_eq!(mac[..4], [0x5b, 0xdc, 0xc1, 0x46]);
    }
}
