//! The report in a real browser. Skipped aloud where there is none.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::Place;
use crate::pinned::every_task;

/// Reports what a page looks like once its scripts have run, as text that `--dump-dom` prints.
const PROBE: &str = r#"<!doctype html><title>probe</title>
<iframe id="page" src="REPORT" style="width:WIDTHpx;height:800px;border:0"></iframe>
<pre id="found"></pre>
<script>
const page = document.getElementById("page"), errors = [];
page.addEventListener("load", () => {
  const inner = page.contentDocument, root = inner.documentElement;
  const beyond = [...inner.querySelectorAll("body *")].filter(e => {
    const box = e.getBoundingClientRect();
    for (let p = e; p; p = p.parentElement)
      if (["auto", "scroll", "hidden"].includes(page.contentWindow.getComputedStyle(p).overflowX)) return false;
    return box.right > WIDTH + 1;
  });
  document.getElementById("found").textContent = "FOUND" + JSON.stringify({
    title: inner.title,
    width: root.scrollWidth,
    beyond: beyond.slice(0, 3).map(e => e.outerHTML.slice(0, 80)),
    rows: inner.querySelectorAll("table tbody tr").length,
    charts: [...inner.querySelectorAll("svg")].map(e => e.getBoundingClientRect().width),
    outside: [...inner.querySelectorAll("[src],link[href]")].map(e => e.outerHTML.slice(0, 80)),
  }) + "END";
});
</script>
"#;

fn browser() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
    let path = std::env::var_os("PATH")?;
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    names.iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name))).find(|p| p.is_file())
}

/// Opens the report in a frame of this width; gives what the probe found and what the console said.
fn open(browser: &Path, place: &Place, report: &Path, width: u32) -> (Value, String) {
    let page = PROBE
        .replace("REPORT", &format!("file://{}", report.display()))
        .replace("WIDTH", &width.to_string());
    let probe = place.path().join(place.write("probe.html", &page));
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args([
            "--disable-dev-shm-usage",
            "--allow-file-access-from-files",
            "--enable-logging=stderr",
        ])
        .args(["--virtual-time-budget=4000", "--window-size=1400,1000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", place.path().join(format!("profile-{width}")).display()))
        .arg(format!("file://{}", probe.display()))
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let found = dom.split_once("FOUND").and_then(|(_, rest)| rest.split_once("END"));
    let (json, _) = found.unwrap_or_else(|| panic!("the probe says nothing\n{dom}\n{log}"));
    let json = json.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    (serde_json::from_str(&json).unwrap(), log)
}

#[test]
fn the_report_opens_from_a_file_without_errors() {
    let Some(browser) = browser() else {
        println!("skipped: there is no chromium in PATH");
        return;
    };
    let place = every_task();
    let detail = place.sbp(&["show", "report", "--json"]).expect(0).json();
    let dir = detail["node"]["outputs"][0]["path"].as_str().unwrap();
    let report = Path::new(dir).join("report.html");

    for width in [1200, 390] {
        let (found, log) = open(&browser, &place, &report, width);
        let console: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("CONSOLE") || line.contains("Uncaught"))
            .collect();
        assert!(console.is_empty(), "{console:?}");
        assert!(found["width"].as_u64().unwrap() <= u64::from(width), "{found}");
        assert_eq!(found["beyond"], serde_json::json!([]), "{found}");
        assert_eq!(found["outside"], serde_json::json!([]), "a report needs no other file");
        assert!(found["rows"].as_u64().unwrap() >= 2, "{found}");
        let charts = found["charts"].as_array().unwrap();
        assert!(!charts.is_empty(), "{found}");
        // On a phone a chart is as wide as the page, with larger words.
        let readable = |chart: &Value| chart.as_f64().is_some_and(|w| w > 300.0 && w < 1200.0);
        assert!(charts.iter().all(readable), "{found}");
    }
}
