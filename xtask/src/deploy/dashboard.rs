//! The dashboard is one that Grafana shows: every panel asks something, none lies on another.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Complaint;

/// Grafana's grid.
const WIDTH: u64 = 24;

/// Notes what is wrong with the dashboard of a file.
pub(super) fn check(file: &Path, complaints: &mut Vec<Complaint>) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let dashboard: Value = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
    complaints.extend(wrong(&dashboard).into_iter().map(|what| format!("dashboard: {what}")));
    Ok(())
}

fn wrong(dashboard: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let panels: Vec<&Value> = dashboard["panels"].as_array().into_iter().flatten().collect();
    if panels.is_empty() || dashboard["uid"].as_str().is_none_or(str::is_empty) {
        wrong.push("it has no panel, or no uid".to_owned());
    }
    for (index, panel) in panels.iter().enumerate() {
        let title = panel["title"].as_str().unwrap_or("?");
        let asks = |target: &Value| target["expr"].as_str().is_some_and(|expr| !expr.is_empty());
        let targets: Vec<&Value> = panel["targets"].as_array().into_iter().flatten().collect();
        if panel["type"] != "row" && (targets.is_empty() || !targets.into_iter().all(asks)) {
            wrong.push(format!("{title} asks nothing"));
        }
        let [x, y, width, height] = area(panel);
        if width == 0 || height == 0 || x + width > WIDTH {
            wrong.push(format!("{title} is outside of the grid"));
        }
        for other in &panels[..index] {
            let [left, top, w, h] = area(other);
            if x < left + w && left < x + width && y < top + h && top < y + height {
                wrong.push(format!("{title} lies on {}", other["title"]));
            }
            if panel["id"] == other["id"] {
                wrong.push(format!("{title} has the number of {}", other["title"]));
            }
        }
    }
    wrong
}

fn area(panel: &Value) -> [u64; 4] {
    ["x", "y", "w", "h"].map(|field| panel["gridPos"][field].as_u64().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn panels_that_collide_or_ask_nothing_are_named() {
        let panel = |id: u64, x: u64, expr: &str| json!({"id": id, "title": "p", "type": "stat", "gridPos": {"x": x, "y": 0, "w": 8, "h": 8}, "targets": [{"expr": expr}]});
        let dashboard = |panels: Value| json!({"uid": "u", "panels": panels});
        let rows = [
            (json!([panel(1, 0, "up"), panel(2, 8, "up")]), 0, "well"),
            (json!([panel(1, 0, "up"), panel(2, 7, "up")]), 1, "one on the other"),
            (json!([panel(1, 0, "up"), panel(1, 8, "up")]), 1, "the same number"),
            (json!([panel(1, 0, "")]), 1, "asks nothing"),
            (json!([panel(1, 20, "up")]), 1, "outside"),
            (json!([]), 1, "empty"),
        ];
        for (panels, expected, message) in rows {
            assert_eq!(wrong(&dashboard(panels)).len(), expected, "{message}");
        }
    }
}
