//! What a node that reports on others is told of them.

use super::*;
use crate::task::Upstream;

/// Writes down what it is told.
struct Telling;

impl Task for Telling {
    const KIND: &'static str = "telling";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "writes down what it is told of the nodes upstream";
    const DETERMINISM: Determinism = Determinism::Measured;
    const INPUTS: &'static [Port] = Scripted::INPUTS;
    const OUTPUTS: &'static [Port] = Scripted::OUTPUTS;
    const UNKEYED: &'static [&'static str] = Scripted::UNKEYED;
    const READS_UPSTREAM: bool = true;
    type Params = Script;

    fn run(ctx: &mut Context, _: &Script, _: &Inputs) -> Result<Outputs, Failure> {
        let told = serde_json::to_string(ctx.upstream()).unwrap();
        fs::write(ctx.out("out")?.join("text"), told)?;
        Ok(Outputs::default())
    }
}

#[tokio::test]
async fn reports_are_told_what_the_nodes_upstream_took() {
    let mut bench = Bench::new();
    bench.node("slow", &[], json!({"act": "slow:20"}));
    bench.node("beside", &[], json!({}));
    bench.node("flaky", &["slow"], json!({"act": "flaky:1", "keep_inputs": true}));
    let registry = Registry::default().with::<Telling>();
    let telling = Arc::clone(registry.get("telling").unwrap());
    bench.node("telling", &["flaky"], json!({})).task = telling;

    let told = |summary: &RunSummary| -> Vec<Upstream> {
        serde_json::from_str(&text_of(summary, "telling")).unwrap()
    };
    let first = told(&bench.run().await);
    let names: Vec<&str> = first.iter().map(|node| node.node.as_str()).collect();
    assert_eq!(names, ["slow", "flaky"], "in order, and nothing that stands beside");
    assert!(first[0].took_s.unwrap() >= 0.02);
    assert_eq!((first[0].n_attempts, first[1].n_attempts), (1, 2));
    assert_eq!(first[0].expected_s, None, "nothing like it ran before");
    assert!(first[1].expected_s.unwrap() >= 0.02, "as its task took so far");
    assert!(first.iter().all(|node| node.build.is_some() && node.machine.is_some()));

    bench.set("slow", "text", json!("another"));
    bench.set("slow", "act", json!(""));
    let second = told(&bench.run().await);
    assert_eq!(second[0].expected_s, first[0].took_s, "as it took the last time");
}
