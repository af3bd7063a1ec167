//! Work that is recorded once and then given to a device as a whole: what CUDA calls a graph.
//!
//! A step of training or of decoding is hundreds of launches of the same kernels on the same
//! addresses; recorded, they are one call. A record holds arguments as they were, so whatever changes
//! from step to step is read from device memory, where it is written before. The emulator too runs a
//! graph from its record: a number that went into one by value gives wrong results there as on a GPU.

use std::any::Any;
use std::sync::{Mutex, PoisonError};

use super::{Device, Error};

/// Recorded work. It holds all memory that the device had given out when it was recorded.
pub struct Graph {
    recorded: Box<dyn Any + Send + Sync>,
}

impl Graph {
    pub(super) fn new(recorded: impl Any + Send + Sync) -> Self {
        Self { recorded: Box::new(recorded) }
    }

    /// What the device made of it.
    ///
    /// # Panics
    /// When a device of another kind recorded it.
    pub(super) fn of<T: Any>(&self) -> &T {
        self.recorded.downcast_ref().expect("a graph is replayed by the device that recorded it")
    }
}

/// Records what `work` gives to the device, none of which is done. Until this returns, nobody else
/// gives it anything.
///
/// # Errors
/// When the device or `work` fails.
///
/// # Panics
/// When `work` reads, writes or takes memory.
pub fn record(
    device: &dyn Device,
    work: impl FnOnce() -> Result<(), Error>,
) -> Result<Graph, Error> {
    device.begin_recording()?;
    let done = work();
    // A failure must not leave the device recording.
    let graph = device.end_recording();
    done.and(graph)
}

/// The graphs of work that comes again and again, by its shape.
///
/// A shape is recorded when it comes the second time: what occurs once is not worth it, and by then
/// every kernel is loaded and every product planned, which a GPU could not do while it records.
pub struct Graphs<K> {
    /// The one used last is the last.
    shapes: Mutex<Vec<Shape<K>>>,
    n_shapes_max: usize,
}

struct Shape<K> {
    key: K,
    graph: Option<Graph>,
}

impl<K: PartialEq> Graphs<K> {
    /// Keeps the `n_shapes_max` shapes used last; with 0, everything is launched as it comes.
    pub fn new(n_shapes_max: usize) -> Self {
        Self { shapes: Mutex::default(), n_shapes_max }
    }

    /// Has `work` done: as a graph where its shape came before. For equal keys, `work` gives the same
    /// kernels, grids and arguments.
    ///
    /// # Errors
    /// When the device or `work` fails.
    ///
    /// # Panics
    /// As of [`record`].
    pub fn run(
        &self,
        device: &dyn Device,
        key: K,
        work: impl Fn() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut shapes = self.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = shapes.iter().position(|shape| shape.key == key) else {
            work()?;
            shapes.push(Shape { key, graph: None });
            let n_over = shapes.len().saturating_sub(self.n_shapes_max);
            shapes.drain(..n_over);
            return Ok(());
        };
        let mut shape = shapes.remove(at);
        let graph = match shape.graph.take() {
            Some(graph) => graph,
            None => record(device, work)?,
        };
        device.replay(&graph)?;
        shape.graph = Some(graph);
        shapes.push(shape);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::adamw::{self, AdamW, Factors};
    use crate::cuda::emulator::Schedule;
    use crate::cuda::{Buffer, Emulator};

    fn emulator() -> Emulator {
        Emulator::new(&std::env::temp_dir().join("sbp-emulated-graphs"), Schedule::Forward)
    }

    /// Addresses are recorded and their contents are not, and nothing is done while recording.
    #[test]
    fn a_graph_works_on_what_is_there_when_it_is_replayed() {
        let device = emulator();
        let (from, to) = (Buffer::of(&device, &[1_u32, 2]).unwrap(), Buffer::of(&device, &[0; 3]));
        let to = to.unwrap();
        let graph = record(&device, || {
            to.slice(0..2).copy_from(&device, &from)?;
            to.slice(2..3).clear(&device)
        })
        .unwrap();
        assert_eq!(to.read(&device).unwrap(), [0, 0, 0]);
        from.write(&device, &[3, 4]).unwrap();
        to.write(&device, &[9, 9, 9]).unwrap();
        device.replay(&graph).unwrap();
        assert_eq!(to.read(&device).unwrap(), [3, 4, 0]);
    }

    #[test]
    fn a_graph_holds_its_memory() {
        let device = emulator().limited(256);
        let buffer = Buffer::of(&device, &[5_u32; 8]).unwrap();
        let graph = record(&device, || buffer.clear(&device)).unwrap();
        drop(buffer);
        assert_eq!(device.free_bytes().unwrap(), 256 - 32);
        device.replay(&graph).unwrap();
        drop(graph);
        assert_eq!(device.free_bytes().unwrap(), 256);
    }

    /// What would wait or bring numbers from outside cannot be in a graph, on a GPU as here.
    #[test]
    fn what_is_no_device_work_is_refused_while_recording() {
        let check = |work: fn(&Emulator, &Buffer<u32>)| {
            let device = emulator();
            let buffer = Buffer::of(&device, &[0_u32]).unwrap();
            let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                record(&device, || {
                    work(&device, &buffer);
                    Ok(())
                })
            }));
            assert!(tried.is_err());
        };
        check(|device, buffer| buffer.write(device, &[1]).unwrap());
        check(|device, buffer| drop(buffer.read(device).unwrap()));
        check(|device, _| drop(device.allocate(4).unwrap()));
        check(|device, _| device.synchronize().unwrap());
        check(|device, _| device.begin_recording().unwrap());
    }

    /// The numbers that change with a step are read when the graph is replayed.
    #[test]
    fn a_recorded_update_takes_the_factors_of_each_step() {
        let (device, pool) = (emulator(), crate::Pool::new(1));
        let (mut params, mut m, mut v) = (vec![0.5_f32; 8], vec![0.0; 8], vec![1e-6; 8]);
        let [on_device, first, second] =
            [&params, &m, &v].map(|values| Buffer::of(&device, values).unwrap());
        let (rounded, grads) =
            (Buffer::poisoned(&device, 8).unwrap(), Buffer::poisoned(&device, 8).unwrap());
        let factors = Buffer::poisoned(&device, 1).unwrap();
        let state =
            adamw::cuda::State { params: &on_device, rounded: &rounded, m: &first, v: &second };
        let graph =
            record(&device, || adamw::cuda::step(&device, state, &grads, &factors)).unwrap();
        for step in 1..=3 {
            let lr = 1e-2 / step as f64;
            let settings = AdamW { lr, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
            let gradient = [0.25 * step as f32; 8];
            adamw::step(&pool, &mut params, &gradient, &mut m, &mut v, settings, step, 0.5);
            grads.write(&device, &gradient).unwrap();
            factors.write(&device, &[Factors::of(settings, step, 0.5)]).unwrap();
            device.replay(&graph).unwrap();
            assert_eq!(on_device.read(&device).unwrap(), params, "step {step}");
        }
    }

    #[test]
    fn work_that_fails_leaves_nothing_recorded() {
        let device = emulator();
        let error = Error::Call { call: "a test", message: "it fails".to_owned() };
        let failed = record(&device, || Err(error.clone())).err();
        assert_eq!(failed, Some(error));
        let buffer = Buffer::of(&device, &[7_u32]).unwrap();
        assert_eq!(buffer.read(&device).unwrap(), [7]);
    }

    #[test]
    fn shapes_are_recorded_when_they_come_again() {
        let (device, n_works) = (emulator(), Cell::new(0));
        let buffer = Buffer::of(&device, &[0_u32]).unwrap();
        let check = |graphs: &Graphs<u32>, key, expected| {
            let before = (n_works.get(), device.n_replays());
            let work = || {
                n_works.set(n_works.get() + 1);
                buffer.clear(&device)
            };
            buffer.write(&device, &[1]).unwrap();
            graphs.run(&device, key, work).unwrap();
            assert_eq!(buffer.read(&device).unwrap(), [0], "it is done either way");
            let found = (n_works.get() - before.0, device.n_replays() - before.1);
            assert_eq!(found, expected, "{key}");
        };
        let (plain, recorded, replayed) = ((1, 0), (1, 1), (0, 1));
        let two = Graphs::new(2);
        check(&two, 7, plain);
        check(&two, 7, recorded);
        check(&two, 8, plain);
        check(&two, 7, replayed);
        // The shape used longest ago makes room.
        check(&two, 9, plain);
        check(&two, 8, plain);
        check(&two, 9, recorded);
        check(&two, 7, plain);
        let none = Graphs::new(0);
        check(&none, 7, plain);
        check(&none, 7, plain);
    }
}
