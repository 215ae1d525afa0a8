//! The texts of the engine's errors: lower case, without a full stop, and without the text of the source.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use polyproc_core::conn::{Address, AuthError, ConnectError};
use polyproc_core::pool::PoolError;
use polyproc_core::process::{FunctionError, StartError};
use polyproc_core::queue::{GetError, PutError, Queue, QueueSettings, TaskDoneError};
use polyproc_core::sync::{BarrierError, EnterError, OverRelease, ReleaseError, TooManyWaiters};
use polyproc_core::{Deadline, MemoryError, OutOfBounds, OutOfSpace, WaitError, error_chain};

fn os() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}

fn out_of_space() -> OutOfSpace {
    let queue = Queue::new(QueueSettings { max_bytes: 1000, ..QueueSettings::default() }).expect("memory");
    match queue.put(&[0; 2000], &[], Deadline::PASSED) {
        Err(PutError::OutOfSpace(error)) => error,
        put => panic!("{put:?}"),
    }
}

fn function_errors() -> Vec<FunctionError> {
    let path = || "/lib/x.so".to_owned();
    vec![
        FunctionError::NotInAnImage { address: 0x1000 },
        FunctionError::NoBuildId { path: path() },
        FunctionError::NotLoadable { path: path(), reason: "it does not exist".to_owned() },
        FunctionError::OtherBuild { path: path() },
        FunctionError::NotCode { path: path(), offset: 7 },
    ]
}

fn start_errors() -> Vec<StartError> {
    vec![
        StartError::NotInitialised,
        StartError::Function(FunctionError::NotInAnImage { address: 0x1000 }),
        StartError::Argument(Box::new(os())),
        StartError::Threads { count: 2 },
        StartError::ClosureNeedsFork,
        StartError::Preload { why: "it panicked".to_owned() },
        StartError::Forkserver { why: "it was killed".to_owned() },
        StartError::CurrentDir { path: PathBuf::from("/no/such"), source: os() },
        StartError::Env { name: "a=b".into() },
        StartError::Interrupted,
        StartError::Exiting,
        StartError::Os { doing: "creating a channel", source: os() },
    ]
}

fn memory_errors() -> Vec<MemoryError> {
    vec![
        MemoryError::Corrupt,
        MemoryError::Busy,
        MemoryError::Interrupted,
        MemoryError::OutOfSpace(out_of_space()),
        MemoryError::System(os()),
    ]
}

fn connect_errors() -> Vec<ConnectError> {
    let address = || Address::Path(PathBuf::from("/tmp/socket"));
    let auth = [AuthError::WrongKey, AuthError::Refused, AuthError::Protocol, AuthError::Silent(os())];
    let mut errors = vec![ConnectError::Os { address: address(), source: os() }, ConnectError::Interrupted];
    errors.extend(auth.map(|source| ConnectError::Auth { address: address(), source }));
    errors
}

fn queue_errors() -> Vec<Box<dyn Error>> {
    let mut errors: Vec<Box<dyn Error>> = vec![
        PutError::Full.into(),
        PutError::Closed.into(),
        PutError::Interrupted.into(),
        PutError::NotReturnable.into(),
        PutError::OutOfSpace(out_of_space()).into(),
        PutError::Descriptors(os()).into(),
        GetError::Empty.into(),
        GetError::Closed.into(),
        GetError::Interrupted.into(),
        GetError::DescriptorsLost.into(),
        GetError::Descriptors(os()).into(),
        TaskDoneError::TooMany.into(),
    ];
    errors.extend(memory_errors().into_iter().map(|error| PutError::Memory(error).into()));
    errors.extend(memory_errors().into_iter().map(|error| GetError::Memory(error).into()));
    errors.extend(memory_errors().into_iter().map(|error| TaskDoneError::Memory(error).into()));
    errors
}

fn sync_errors() -> Vec<Box<dyn Error>> {
    vec![
        WaitError::TimedOut.into(),
        WaitError::Interrupted.into(),
        ReleaseError::NotHeld.into(),
        ReleaseError::NotOwner.into(),
        EnterError::TooManyWaiters(TooManyWaiters).into(),
        EnterError::Wait(WaitError::TimedOut).into(),
        OverRelease.into(),
        BarrierError::Broken.into(),
        BarrierError::Interrupted.into(),
        BarrierError::TooManyWaiters(TooManyWaiters).into(),
    ]
}

fn pool_errors() -> Vec<PoolError> {
    let mut errors = vec![
        PoolError::NoWorkers,
        PoolError::TooManyWorkers { workers: 100, limit: 10 },
        PoolError::Fork,
        PoolError::CpuCount(os()),
        PoolError::Function(FunctionError::NotInAnImage { address: 0x1000 }),
        PoolError::Argument(Box::new(os())),
        PoolError::Os(os()),
    ];
    errors.extend(start_errors().into_iter().map(PoolError::Start));
    errors
}

fn all_errors() -> Vec<Box<dyn Error>> {
    let mut errors = vec![OutOfBounds { offset: 1, len: 2, size: 2 }.into()];
    errors.extend(function_errors().into_iter().map(Into::into));
    errors.extend(start_errors().into_iter().map(Into::into));
    errors.extend(memory_errors().into_iter().map(Into::into));
    errors.extend(connect_errors().into_iter().map(Into::into));
    errors.extend(queue_errors());
    errors.extend(sync_errors());
    errors.extend(pool_errors().into_iter().map(Into::into));
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
        // The text of the system is its own.
        assert!(!text.starts_with(char::is_uppercase) || text == os().to_string(), "{text}");
        assert!(!text.ends_with('.') && !text.contains('\n'), "{text}");
    }
}

#[test]
fn a_chain_has_each_text_once() {
    let error = PoolError::Start(StartError::Os { doing: "creating a channel", source: os() });
    assert_eq!(error_chain(&error), format!("could not start a worker: creating a channel failed: {}", os()));
}
