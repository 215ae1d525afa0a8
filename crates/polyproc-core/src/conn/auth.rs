//! Both sides of a connection prove to each other that they know a key, without sending it.
//!
//! | message | from | body |
//! |---|---|---|
//! | challenge | the listener | random `L` |
//! | response | the connecting side | random `C`, HMAC of *connect*, `L`, `C` under the key |
//! | proof | the listener | HMAC of *listen*, `C`, `L` under the key; empty when the response was wrong |
//!
//! Each side chooses a random number, both are under each HMAC, and so is the role: what one side says is of no use in another
//! exchange, nor to prove the other role. HMAC-SHA256: RFC 2104. The scheme is the mutual authentication of ISO/IEC 9798-4.
//!
//! Before the peer is trusted, no more than [`LONGEST`] bytes of it are read, and no descriptor.

use std::io;
use std::os::fd::AsFd;

use hmac_sha256::HMAC;

use super::Connection;
use super::channel::bare_bytes;
use crate::deadline::Deadline;
use crate::sys::{socket, watch};

const RANDOM_LEN: usize = 32;
const MAC_LEN: usize = 32;
/// No message of the exchange is longer; what is, is not read.
const LONGEST: usize = RANDOM_LEN + MAC_LEN;
const LISTEN: &[u8] = b"polyproc listen";
const CONNECT: &[u8] = b"polyproc connect";

type Random = [u8; RANDOM_LEN];

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

/// The next message, if it is there.
///
/// # Errors
/// [`AuthError::Silent`] with [`io::ErrorKind::WouldBlock`] when it is not.
fn try_receive(connection: &Connection) -> Result<Vec<u8>, AuthError> {
    let mut bytes = [0; 8 + LONGEST + 1];
    let len = socket::receive_bytes(connection.as_fd(), &mut bytes).map_err(io::Error::from)?;
    match bytes.get(..len) {
        Some([]) => Err(AuthError::Silent(io::ErrorKind::UnexpectedEof.into())),
        Some(message) => bare_bytes(message).map(<[u8]>::to_vec).ok_or(AuthError::Protocol),
        None => Err(AuthError::Protocol), // longer than any of ours
    }
}

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

/// Sends without waiting: a peer that does not read so little is of no use.
fn send(connection: &Connection, parts: &[&[u8]]) -> Result<(), AuthError> {
    Ok(connection.send(&parts.concat(), &[], Deadline::PASSED)?)
}

fn random() -> Result<Random, AuthError> {
    let mut random = [0; RANDOM_LEN];
    crate::sys::random(&mut random)?;
    Ok(random)
}

/// Whether two proofs are the same. In constant time.
fn is_same(a: &[u8], b: &[u8; MAC_LEN]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

fn mac(key: &[u8], role: &[u8], first: &[u8], second: &[u8]) -> [u8; MAC_LEN] {
    HMAC::mac([role, first, second].concat(), key)
}

/// The listener's side of an exchange, between its challenge and the response.
#[derive(Debug)]
pub(super) struct Challenged {
    random: Random,
}

impl Challenged {
    /// Sends the challenge.
    pub(super) fn send(connection: &Connection) -> Result<Self, AuthError> {
        let random = random()?;
        send(connection, &[&random])?;
        Ok(Self { random })
    }

    /// Takes the response, if it is there, and proves that we know the key. False when it is not there yet.
    pub(super) fn take(&self, connection: &Connection, key: &[u8]) -> Result<bool, AuthError> {
        let response = match try_receive(connection) {
            Err(AuthError::Silent(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            received => received?,
        };
        let (theirs, proof) = response.split_first_chunk::<RANDOM_LEN>().ok_or(AuthError::Protocol)?;
        if !is_same(proof, &mac(key, CONNECT, &self.random, theirs)) {
            // The other side may have gone; that its key is wrong is what matters.
            let _ = send(connection, &[]);
            return Err(AuthError::WrongKey);
        }
        send(connection, &[&mac(key, LISTEN, theirs, &self.random)])?;
        Ok(true)
    }
}

/// The connecting side: proves that we know the key, and has the listener prove it.
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

    /// Both sides of an exchange with these keys.
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

    /// A false listener passes the challenge of a true one on, and what comes back: it is not trusted by the client.
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

    /// A message whose head lies in a memory file, as large as it likes: nothing of it is read, and it is no descriptor of ours.
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
