use super::*;
use crate::policies;
use crate::report::runs;
use crate::scenarios::Size;
use crate::sim::Options;

/// Results of a few small runs.
fn results() -> Vec<Run> {
    let small = |policy, nodes| runs::Todo::new("flash-crowd", policy, Size { nodes, pieces: 16 });
    let compared = policies::ALL.iter().map(|policy| small(policy.name, 8));
    let scaled = [4, 16].map(|nodes| small(OURS, nodes));
    let pieces = [8, 32].map(|pieces| runs::Todo::new("flash-crowd", OURS, Size { nodes: 8, pieces }));
    let options = Options::default();
    compared.chain(scaled).chain(pieces).map(|todo| todo.perform(&options).unwrap()).collect()
}

#[test]
fn the_page_needs_nothing_else_and_says_what_was_measured() {
    let runs = results();
    let page = Page::new(&runs).unwrap();
    let html = page.html();
    for outside in ["src=", "href=", "url(", "@import", "<script"] {
        assert!(!html.contains(outside), "{outside}");
    }
    let ours = runs.iter().find(|run| run.policy == OURS).unwrap();
    assert!(html.contains(&format!("<span class=\"number\">{}</span>", times(ours.last_over_bound))));
    let ids: Vec<&str> = page.plots().iter().map(|plot| plot.id).collect();
    let all = [
        "policies",
        "finishes",
        "nodes-complete",
        "pieces-held",
        "seeder-egress",
        "scaling-nodes",
        "scaling-pieces",
    ];
    assert_eq!(ids, all);
    for plot in page.plots() {
        assert!(!plot.svg.contains("NaN") && !plot.takeaway.contains("NaN"), "{}", plot.id);
        assert!(!plot.table.rows.is_empty(), "{}", plot.id);
    }
}

#[test]
fn a_broken_promise_is_shown() {
    let scenario = scenarios::named("flash-crowd").unwrap();
    let threshold = &scenario.thresholds[0];
    let mut run = results().remove(0);
    let mut promises = Promises::default();
    run.last_over_bound = threshold.last_over_bound;
    run.control_per_piece = threshold.control_per_piece + 0.1;
    promises.add(scenario, threshold, Some(&run));
    run.control_per_piece = threshold.control_per_piece;
    promises.add(scenario, threshold, Some(&run));
    promises.add(scenario, threshold, None);
    assert_eq!((promises.kept, promises.broken), (1, 1));
    assert_eq!(promises.rows.matches("<td class=\"broken\">").count(), 2, "the figure and the verdict");
    assert!(promises.rows.contains("not run"));
}

#[test]
fn results_are_read_as_they_were_written_and_strangers_are_named() {
    let folder = std::env::temp_dir().join(format!("shoal-sim-results-{}", std::process::id()));
    let run = results().remove(0);
    runs::write(&folder, "one", &run).unwrap();
    let read = runs::read(&folder).unwrap();
    assert_eq!(format!("{:?}", read[0]), format!("{run:?}"));
    std::fs::write(folder.join("two.json"), "{}").unwrap();
    let error = format!("{:#}", runs::read(&folder).unwrap_err());
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(error.contains("two.json is no result of a run"), "{error}");
}
