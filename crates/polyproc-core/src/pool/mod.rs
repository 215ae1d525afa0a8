//! Pools of workers.
use crate::conn::Channel;
pub(crate) fn run_worker(_channel: &Channel) -> crate::process::Outcome { todo!() }
