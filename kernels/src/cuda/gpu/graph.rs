//! Graphs of a GPU: what the stream is given while it captures, made ready to be launched at once.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::{Context, Memory, failed};
use crate::cuda::Error;

/// An instantiated graph.
pub(super) struct Executable {
    handle: sys::CUgraphExec,
    /// Where it was captured, and is launched.
    stream: sys::CUstream,
    context: Arc<Context>,
    /// Keeps every address alive.
    _memory: Vec<Arc<Memory>>,
}

// SAFETY: As of `Gpu`: handles may be used from any thread once the context is current there.
unsafe impl Send for Executable {}
// SAFETY: As above.
unsafe impl Sync for Executable {}

/// Begins to capture. What a stream cannot capture, such as loading a module, fails from here on.
pub(super) fn begin(stream: sys::CUstream) -> Result<(), Error> {
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: The stream is the GPU's.
    unsafe { result::stream::begin_capture(stream, mode) }
        .map_err(|e| failed("cuStreamBeginCapture", e))
}

/// Ends the capture and makes what was captured ready.
pub(super) fn end(
    stream: sys::CUstream,
    context: Arc<Context>,
    memory: Vec<Arc<Memory>>,
) -> Result<Executable, Error> {
    // SAFETY: The stream is the GPU's, and captures.
    let graph = unsafe { result::stream::end_capture(stream) }
        .map_err(|e| failed("cuStreamEndCapture", e))?;
    // A capture that something spoiled ends without a graph.
    if graph.is_null() {
        let message = "what was captured cannot be a graph".to_owned();
        return Err(Error::Call { call: "cuStreamEndCapture", message });
    }
    // SAFETY: The graph was just captured.
    let handle = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
    // SAFETY: As above; an instance does not need the graph that it was made of.
    let _ = unsafe { result::graph::destroy(graph) };
    let handle = handle.map_err(|e| failed("cuGraphInstantiate", e))?;
    Ok(Executable { handle, stream, context, _memory: memory })
}

impl Executable {
    /// Gives it to the stream that it was captured from.
    pub(super) fn launch(&self, stream: sys::CUstream) -> Result<(), Error> {
        assert_eq!(self.stream, stream, "a graph is replayed by the GPU that recorded it");
        // SAFETY: The instance is alive, holds the memory it works on, and its modules stay loaded.
        unsafe { result::graph::launch(self.handle, stream) }
            .map_err(|e| failed("cuGraphLaunch", e))
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: Instantiated once, and destroyed once; the driver waits for a launch under way.
            let _ = unsafe { result::graph::exec_destroy(self.handle) };
        }
    }
}
