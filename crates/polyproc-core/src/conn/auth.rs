//! Both sides of a connection prove to each other that they know a key, without sending it.
//!
//! | message | from | body |
//! |---|---|---|
//! | challenge | the listener | random `L` |
//! | response | the connecting side | random `C`, HMAC of *connect*, `L`, `C` under the key |
//! | proof | the listener | HMAC of *listen*, `C`, `L` under the key; empty if the response was wrong |
//!
//! Each side chooses a random number. Each HMAC covers both numbers and the role, so a message proves nothing in another
//! exchange or for the other role. HMAC-SHA256: RFC 2104. The scheme is the mutual authentication of ISO/IEC 9798-4.
//!
//! Until the peer is authenticated, no message longer than [`LONGEST`] is accepted from it, and no descriptor.
//!
//! [`listener`](super::listener) is the only caller. Its side is split at the response ([`Challenged`]), so that one thread can
//! serve many peers without blocking; the connecting side blocks ([`answer`]).
//!
//! The exchange authenticates the connection at its beginning. It does not encrypt or sign later messages: over a Unix socket,
//! only processes that hold one of its ends, and privileged ones, can read or change them. A key that can be guessed is not
//! protected, since a listener can test guesses with one recorded response.

use std::io;
use std::os::fd::AsFd;

use hmac_sha256::HMAC;

use super::Connection;
use super::channel::bare_bytes;
use crate::deadline::Deadline;
use crate::sys::{socket, watch};

const RANDOM_LEN: usize = 32;
const MAC_LEN: usize = 32;
/// The length of the longest message of the exchange, in bytes. A longer message is rejected.
const LONGEST: usize = RANDOM_LEN + MAC_LEN;
/// The role in the listener's proof.
const LISTEN: &[u8] = b"polyproc listen";
/// The role in the connecting side's response.
const CONNECT: &[u8] = b"polyproc connect";

/// A random number of one side, from the kernel (`getrandom(2)`), used in one exchange only.
type Random = [u8; RANDOM_LEN];

/// The other side did not prove that it knows the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// Its proof was wrong: it has another key.
    #[error("the peer has another key")]
    WrongKey,
    /// It refused the proof of this side: it has another key.
    #[error("the peer refused the key of this process")]
    Refused,
    /// Its message does not follow the protocol.
    #[error("the peer does not follow the authentication protocol")]
    Protocol,
    /// It did not answer in time, or closed the connection.
    #[error("the peer did not answer the authentication")]
    Silent(#[from] io::Error),
}

/// Returns the body of the next message, without blocking. Reads the bytes only: the kernel drops descriptors, and a memory
/// file is not opened.
///
/// # Errors
/// [`AuthError::Silent`] with [`io::ErrorKind::WouldBlock`] when no message has arrived, or with
/// [`io::ErrorKind::UnexpectedEof`] when the peer has closed the connection; [`AuthError::Protocol`] for a message that is too
/// long or not a plain one.
fn try_receive(connection: &Connection) -> Result<Vec<u8>, AuthError> {
    let mut bytes = [0; 8 + LONGEST + 1];
    let len = socket::receive_bytes(connection.as_fd(), &mut bytes).map_err(io::Error::from)?;
    match bytes.get(..len) {
        Some([]) => Err(AuthError::Silent(io::ErrorKind::UnexpectedEof.into())),
        Some(message) => bare_bytes(message).map(<[u8]>::to_vec).ok_or(AuthError::Protocol),
        None => Err(AuthError::Protocol), // longer than `LONGEST`
    }
}

/// As [`try_receive`], but blocks until the deadline, also through signals.
fn receive(connection: &Connection, deadline: Deadline) -> Result<Vec<u8>, AuthError> {
    loop {
        match try_receive(connection) {
            Err(AuthError::Silent(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return received,
        }
        match watch::is_readable(connection.as_fd(), deadline) {
            Ok(false) => return Err(AuthError::Silent(io::ErrorKind::TimedOut.into())),
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
    }
}

/// Sends without blocking: a peer that leaves even these short messages unread is given up.
fn send(connection: &Connection, parts: &[&[u8]]) -> Result<(), AuthError> {
    Ok(connection.send(&parts.concat(), &[], Deadline::PASSED)?)
}

/// Returns a new random number.
fn random() -> Result<Random, AuthError> {
    let mut random = [0; RANDOM_LEN];
    crate::sys::random(&mut random)?;
    Ok(random)
}

/// Returns whether two proofs are equal, in constant time for proofs of the right length: the time must not reveal how many
/// bytes match.
fn is_same(a: &[u8], b: &[u8; MAC_LEN]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// Returns the HMAC of `role`, `first` and `second` under `key`. The two numbers have fixed lengths and no role is a prefix of
/// the other, so the concatenation is unambiguous.
fn mac(key: &[u8], role: &[u8], first: &[u8], second: &[u8]) -> [u8; MAC_LEN] {
    HMAC::mac([role, first, second].concat(), key)
}

/// The listener's side of an exchange, after the challenge and before the response.
#[derive(Debug)]
pub(super) struct Challenged {
    /// The number `L`, against which the response is checked.
    random: Random,
}

impl Challenged {
    /// Sends the challenge.
    ///
    /// # Errors
    /// [`AuthError::Silent`] when the peer has closed the connection or the message could not be sent at once.
    pub(super) fn send(connection: &Connection) -> Result<Self, AuthError> {
        let random = random()?;
        send(connection, &[&random])?;
        Ok(Self { random })
    }

    /// Receives the response and sends the listener's proof. Returns false if no response has arrived yet. Call it until it
    /// returns anything else, then use or drop the connection.
    ///
    /// # Errors
    /// [`AuthError::WrongKey`] for a wrong proof, [`AuthError::Protocol`] for a malformed message, [`AuthError::Silent`] for a
    /// closed connection.
    pub(super) fn take(&self, connection: &Connection, key: &[u8]) -> Result<bool, AuthError> {
        let response = match try_receive(connection) {
            Err(AuthError::Silent(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            received => received?,
        };
        let (theirs, proof) = response.split_first_chunk::<RANDOM_LEN>().ok_or(AuthError::Protocol)?;
        if !is_same(proof, &mac(key, CONNECT, &self.random, theirs)) {
            // The other side may have closed the connection; the wrong key is the error to report.
            let _ = send(connection, &[]);
            return Err(AuthError::WrongKey);
        }
        send(connection, &[&mac(key, LISTEN, theirs, &self.random)])?;
        Ok(true)
    }
}

/// The connecting side of an exchange: proves that it knows the key, and checks the listener's proof. Blocks until the
/// deadline.
///
/// # Errors
/// - [`AuthError::Refused`] when the listener sent an empty proof: it found the response to be wrong.
/// - [`AuthError::WrongKey`] when it sent a wrong proof, as a listener without the key that accepts any response.
/// - [`AuthError::Protocol`] for a malformed message; [`AuthError::Silent`] at the deadline or the end of the connection.
pub(super) fn answer(connection: &Connection, key: &[u8], deadline: Deadline) -> Result<(), AuthError> {
    let challenge = receive(connection, deadline)?;
    let theirs: Random = challenge.try_into().map_err(|_| AuthError::Protocol)?;
    let ours = random()?;
    send(connection, &[&ours, &mac(key, CONNECT, &theirs, &ours)])?;
    match receive(connection, deadline)? {
        proof if is_same(&proof, &mac(key, LISTEN, &ours, &theirs)) => Ok(()),
        proof if proof.is_empty() => Err(AuthError::Refused),
        _ => Err(AuthError::WrongKey),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(connection: &Connection, key: &[u8]) -> Result<(), AuthError> {
        let challenged = Challenged::send(connection)?;
        while !challenged.take(connection, key)? {
            watch::is_readable(connection.as_fd(), Deadline::NEVER)?;
        }
        Ok(())
    }

    /// Runs an exchange with these keys. Returns the results of both sides.
    fn exchange(ours: &[u8], theirs: &[u8]) -> (Result<(), AuthError>, Result<(), AuthError>) {
        let (one, other) = Connection::pair().expect("a socket pair");
        std::thread::scope(|scope| {
            let answering = scope.spawn(move || answer(&other, theirs, Deadline::NEVER));
            let listened = listen(&one, ours);
            (listened, answering.join().expect("no panic"))
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

    /// A false listener that does not know the key returns the client's own proof. The client rejects it.
    #[test]
    fn what_one_side_says_proves_nothing_to_another() {
        let key = b"open sesame";
        let (client, false_listener) = Connection::pair().expect("a socket pair");
        std::thread::scope(|scope| {
            let answering = scope.spawn(move || answer(&client, key, Deadline::NEVER));
            let challenge = [5; RANDOM_LEN];
            send(&false_listener, &[&challenge]).expect("room");
            let response = receive(&false_listener, Deadline::NEVER).expect("it answers");
            let proof = response.get(RANDOM_LEN..).expect("a proof");
            send(&false_listener, &[proof]).expect("room"); // reflected
            assert!(matches!(answering.join().expect("no panic"), Err(AuthError::WrongKey)));
        });
    }

    #[test]
    fn nonsense_is_refused() {
        for bytes in [&b""[..], b"#CHALLENGE#", &[7; LONGEST], &[7; 3000]] {
            let (one, other) = Connection::pair().expect("a socket pair");
            other.send(bytes, &[], Deadline::NEVER).expect("room");
            assert!(matches!(answer(&one, b"key", Deadline::NEVER), Err(AuthError::Protocol)));
        }
        let (one, other) = Connection::pair().expect("a socket pair");
        assert!(matches!(answer(&one, b"key", Deadline::PASSED), Err(AuthError::Silent(_))));
        drop(other);
        assert!(matches!(listen(&one, b"key"), Err(AuthError::Silent(_))));
    }

    /// The head of the message is in a large memory file: it is not read, and no descriptor is installed in this process.
    #[test]
    fn no_memory_and_no_descriptor_is_taken_from_a_stranger() {
        let (one, other) = Connection::pair().expect("a socket pair");
        other.send(&vec![1; 1 << 20], &[other.as_fd()], Deadline::NEVER).expect("room");
        let before = std::fs::read_dir("/proc/self/fd").expect("/proc").count();
        assert!(matches!(answer(&one, b"key", Deadline::NEVER), Err(AuthError::Protocol)));
        assert_eq!(std::fs::read_dir("/proc/self/fd").expect("/proc").count(), before);
    }

    #[test]
    fn the_code_is_that_of_the_reference() {
        // RFC 4231, test case 2.
        let mac = HMAC::mac(b"what do ya want for nothing?", b"Jefe");
        assert_eq!(mac[..4], [0x5b, 0xdc, 0xc1, 0x46]);
    }
}
