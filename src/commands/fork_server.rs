//! `sbp fork-server`: makes the processes of a run's attempts.

use std::io;

use engine::task::Registry;

use crate::error::{Error, Result};
use crate::exit::ExitStatus;

pub(crate) fn run(registry: &Registry) -> Result<ExitStatus> {
    match engine::executor::serve(registry) {
        Ok(()) => Ok(ExitStatus::Done),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Err(Error::usage(error)),
        Err(error) => Err(error.into()),
    }
}
