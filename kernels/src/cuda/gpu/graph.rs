//! Work that is recorded once and launched as a whole.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::{Context, Gpu, failed};
use crate::cuda::Error;

/// Recorded launches, copies and products. What they read and write must still be there.
pub struct Graph {
    executable: sys::CUgraphExec,
    context: Arc<Context>,
}

// SAFETY: As of `Gpu`.
unsafe impl Send for Graph {}

impl Gpu {
    /// Records what `work` gives to the device instead of doing it. Nothing in it may allocate, read
    /// back or wait, and its kernels and products must have run before.
    ///
    /// # Errors
    /// When `work` fails or does what cannot be recorded.
    pub fn record(&self, work: impl FnOnce() -> Result<(), Error>) -> Result<Graph, Error> {
        self.context.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: The stream is ours and idle or busy, not recording.
        unsafe { result::stream::begin_capture(self.stream, mode) }
            .map_err(|e| failed("cuStreamBeginCapture", e))?;
        let done = work();
        // SAFETY: Recording began above, and ends whatever `work` did.
        let graph = unsafe { result::stream::end_capture(self.stream) };
        done?;
        let graph = graph.map_err(|e| failed("cuStreamEndCapture", e))?;
        let flags = sys::CUgraphInstantiate_flags(0);
        // SAFETY: The graph was just recorded.
        let executable = unsafe { result::graph::instantiate(graph, flags) }
            .map_err(|e| failed("cuGraphInstantiate", e));
        // SAFETY: The executable is a copy.
        unsafe { result::graph::destroy(graph) }.map_err(|e| failed("cuGraphDestroy", e))?;
        Ok(Graph { executable: executable?, context: Arc::clone(&self.context) })
    }

    /// Does recorded work again.
    ///
    /// # Safety
    /// The buffers of the recorded work are alive.
    ///
    /// # Errors
    /// When the device fails.
    pub unsafe fn replay(&self, graph: &Graph) -> Result<(), Error> {
        self.context.bind()?;
        // SAFETY: The executable is of this context; its buffers are alive, by the caller's word.
        unsafe { result::graph::launch(graph.executable, self.stream) }
            .map_err(|e| failed("cuGraphLaunch", e))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: Made once, in `record`.
            let _ = unsafe { result::graph::exec_destroy(self.executable) };
        }
    }
}
