//! The texts of errors: lower case, without a full stop, and without the text of the source.

use std::error::Error;
use std::io;
use std::sync::Arc;

use polyproc::{
    CodecError, Death, ExitStatus, Failure, FunctionError, GetError, JoinError, LockError, MemoryError, NoWorkers,
    Panic, Process, PutError, Queue, RecvError, SendError, StartError, StillOpen, TaskError, TransferError,
};
use polyproc_core::error_chain;
use serde::{Deserialize, Serialize, Serializer};

fn os() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}

#[derive(Deserialize)]
struct Unencodable;

impl Serialize for Unencodable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("it never can"))
    }
}

fn codec_error() -> CodecError {
    match Process::new(|_: Unencodable| (), Unencodable).start() {
        Err(StartError::Argument(error)) => *error.downcast().expect("the codec's error"),
        started => panic!("{started:?}"),
    }
}

fn panicked() -> Panic {
    Panic { message: "x".to_owned(), location: Some("a.rs:1:2".to_owned()), backtrace: None }
}

fn death() -> Death {
    Death { status: ExitStatus::Exited(3), stack_overflow: false }
}

fn transfer_errors() -> Vec<TransferError> {
    vec![
        TransferError::Codec(codec_error()),
        TransferError::Memory(MemoryError::Corrupt),
        TransferError::Memory(MemoryError::System(os())),
        TransferError::Descriptors(os()),
        TransferError::NotReturnable,
        TransferError::Os(os()),
    ]
}

fn put_out_of_space() -> PutError<Vec<u8>> {
    let queue = Queue::with_max_bytes(0, 1000).expect("memory");
    let error = queue.try_put(vec![0; 2000]).expect_err("it is too large");
    assert!(matches!(error, PutError::OutOfSpace(..)), "{error:?}");
    error
}

fn transport_errors() -> Vec<Box<dyn Error>> {
    let mut errors: Vec<Box<dyn Error>> = vec![
        PutError::Full(1).into(),
        PutError::Closed(1).into(),
        put_out_of_space().into(),
        GetError::Empty.into(),
        GetError::Closed.into(),
        SendError::Closed(1).into(),
        SendError::Full(1).into(),
        RecvError::Closed.into(),
        RecvError::Empty.into(),
    ];
    errors.extend(transfer_errors().into_iter().map(|error| PutError::Failed(1, error).into()));
    errors.extend(transfer_errors().into_iter().map(|error| GetError::Failed(error).into()));
    errors.extend(transfer_errors().into_iter().map(|error| SendError::Failed(1, error).into()));
    errors.extend(transfer_errors().into_iter().map(|error| RecvError::Failed(error).into()));
    errors.extend(transfer_errors().into_iter().map(Into::into));
    errors
}

fn not_started() -> NoWorkers {
    NoWorkers::NotStarted(Arc::new(StartError::Os { doing: "creating a channel", source: os() }))
}

fn failures() -> Vec<Failure> {
    vec![
        Failure::Panicked(panicked()),
        Failure::WorkerLost(death()),
        Failure::TimedOut,
        Failure::OutOfMemory,
        Failure::Cancelled,
        Failure::Refused("no reason".to_owned()),
        Failure::Codec(codec_error()),
        Failure::Function(FunctionError::NotInAnImage { address: 0x1000 }),
        Failure::Terminated,
        Failure::NoWorkers(not_started()),
        Failure::NoWorkers(NoWorkers::Died(death())),
        Failure::NoWorkers(NoWorkers::Panicked(panicked())),
        Failure::NoWorkers(NoWorkers::Codec(codec_error())),
        Failure::NoWorkers(NoWorkers::Refused("no reason".to_owned())),
    ]
}

fn all_errors() -> Vec<Box<dyn Error>> {
    let mut errors: Vec<Box<dyn Error>> = vec![
        codec_error().into(),
        not_started().into(),
        StillOpen.into(),
        LockError::OwnerDied(1).into(),
        LockError::<i32>::TimedOut.into(),
        JoinError::Panicked(panicked()).into(),
        JoinError::Died(death()).into(),
        JoinError::Refused("no reason".to_owned()).into(),
        JoinError::Codec(codec_error()).into(),
        JoinError::Os(os()).into(),
    ];
    errors.extend(transport_errors());
    errors.extend(failures().into_iter().map(Into::into));
    errors.extend(failures().into_iter().map(|failure| TaskError { index: 5, failure }.into()));
    errors
}

#[test]
fn no_error_prints_its_source() {
    for error in all_errors() {
        let mut error = &*error;
        while let Some(source) = error.source() {
            assert!(!error.to_string().contains(&source.to_string()), "{error} | {source}");
            error = source;
        }
    }
}

#[test]
fn texts_are_in_lower_case_without_a_full_stop() {
    for error in all_errors() {
        let text = error.to_string();
        assert!(!text.starts_with(char::is_uppercase) && !text.ends_with('.') && !text.contains('\n'), "{text}");
    }
}

#[test]
fn the_chain_of_a_task_without_workers_has_each_text_once() {
    let error = TaskError { index: 5, failure: Failure::NoWorkers(not_started()) };
    let texts =
        ["item 5: the pool has no workers: none could be started", "creating a channel failed", &os().to_string()];
    assert_eq!(error_chain(&error), texts.join(": "));
}
