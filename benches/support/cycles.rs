//! Benchmarks of bursts, timed by the clock and by the time stamp counter at once.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{Bencher, BenchmarkGroup, Throughput};

use super::counted::{counted, print_elements, repeats};

/// The time stamp counter, or zero where there is none.
#[cfg(target_arch = "x86_64")]
pub(crate) fn reference_cycles() -> u64 {
    // SAFETY: every x86-64 processor has the counter, and Linux leaves it to programs.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The time stamp counter, or zero where there is none.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn reference_cycles() -> u64 {
    0
}

/// Time by both clocks.
#[derive(Clone, Copy, Default)]
struct Spent {
    time: Duration,
    cycles: u64,
}

impl Spent {
    fn by<R>(&mut self, work: impl FnOnce() -> R) -> R {
        let begin = Instant::now();
        let first = reference_cycles();
        let result = counted(work);
        self.cycles += reference_cycles().wrapping_sub(first);
        self.time += begin.elapsed();
        result
    }
}

/// What one benchmark's samples took.
struct Samples {
    /// Elements of one iteration.
    elements: u64,
    /// Cycles an element, and the iterations that showed it.
    samples: Vec<(f64, u64)>,
    total: Spent,
}

impl Samples {
    fn new(elements: u64) -> Self {
        Self {
            elements,
            samples: Vec::new(),
            total: Spent::default(),
        }
    }

    fn add(&mut self, iterations: u64, spent: Spent) -> Duration {
        let elements = (iterations * self.elements) as f64;
        self.samples
            .push((spent.cycles as f64 / elements, iterations));
        self.total.time += spent.time;
        self.total.cycles += spent.cycles;
        spent.time
    }

    /// The median of all iterations; those of one sample count as equal.
    fn median(&mut self) -> Option<f64> {
        self.samples.sort_by(|a, b| a.0.total_cmp(&b.0));
        let iterations: u64 = self.samples.iter().map(|sample| sample.1).sum();
        let mut before = 0;
        let at_half = self.samples.iter().find(|sample| {
            before += sample.1;
            2 * before >= iterations
        });
        at_half.map(|sample| sample.0)
    }

    fn print(&mut self, name: &str) {
        if self.total.cycles == 0 || super::is_smoke_test() {
            return;
        }
        let megahertz = self.total.cycles as f64 / self.total.time.as_secs_f64() / 1e6;
        if let Some(median) = self.median() {
            println!(
                "{name:<39} cycles: {median:.1} each (reference cycles at {megahertz:.0} MHz; median)"
            );
        }
    }
}

/// Benchmarks that handle many elements an iteration, and say what each took.
pub(crate) trait PerElement {
    /// Times `routine`, which handles `elements`.
    fn each<R>(&mut self, name: &str, elements: u64, routine: impl FnMut() -> R);

    /// Times `routine`, which handles `elements`, and is given what `setup` made outside of the
    /// time that counts. Reading the clocks is in it, less than 100 ns an iteration.
    fn each_with<S, R>(
        &mut self,
        name: &str,
        elements: u64,
        setup: impl FnMut() -> S,
        routine: impl FnMut(S) -> R,
    );

    /// Times what `measure` times: it is given a number of iterations of `elements` each.
    fn each_custom(&mut self, name: &str, elements: u64, measure: impl FnMut(u64));
}

impl PerElement for BenchmarkGroup<'_, WallTime> {
    fn each<R>(&mut self, name: &str, elements: u64, mut routine: impl FnMut() -> R) {
        self.each_custom(name, elements, |iterations| {
            for _ in 0..iterations {
                black_box(routine());
            }
        });
    }

    fn each_with<S, R>(
        &mut self,
        name: &str,
        elements: u64,
        mut setup: impl FnMut() -> S,
        mut routine: impl FnMut(S) -> R,
    ) {
        run(self, name, elements, |iterations| {
            let mut spent = Spent::default();
            for _ in 0..iterations {
                let input = black_box(setup());
                // What the routine returns is dropped outside of the time that counts.
                black_box(spent.by(|| routine(input)));
            }
            spent
        });
    }

    fn each_custom(&mut self, name: &str, elements: u64, mut measure: impl FnMut(u64)) {
        run(self, name, elements, |iterations| {
            let mut spent = Spent::default();
            spent.by(|| measure(iterations));
            spent
        });
    }
}

fn run(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    elements: u64,
    mut measure: impl FnMut(u64) -> Spent,
) {
    let mut samples = Samples::new(elements);
    group.throughput(Throughput::Elements(elements));
    group.bench_function(name, |bencher: &mut Bencher<'_, WallTime>| {
        bencher.iter_custom(|iterations| {
            let iterations = repeats(iterations);
            print_elements(iterations * elements);
            samples.add(iterations, measure(iterations))
        });
    });
    samples.print(name);
}
