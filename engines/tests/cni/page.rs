//! The page for operators: what it shows is what the plugin takes.

use serde_json::{Value, json};

use crate::engine::plugin::Call;

const PAGE: &str = include_str!("../../../docs/cni.md");

/// The texts in fences of one kind.
fn blocks(kind: &str) -> Vec<&'static str> {
    let begin = format!("```{kind}\n");
    let blocks = PAGE.split(begin.as_str()).skip(1);
    blocks
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

/// What an engine makes of a plugin in a list, for a daemon that is not there.
fn of_list(list: &Value, plugin: &Value) -> Value {
    let mut conf = plugin.clone();
    conf["cniVersion"] = list["cniVersion"].clone();
    conf["name"] = list["name"].clone();
    conf["nos-relay"]["control"] = "/nowhere/nos-relay.sock".into();
    conf
}

fn add(conf: &Value) -> Call {
    Call::new("ADD", conf)
        .of("c1")
        .with("CNI_NETNS", "/proc/1/ns/net")
}

#[test]
fn networks_of_the_page_are_read() {
    let lists = blocks("json");
    assert!(!lists.is_empty());
    for list in lists {
        let list: Value = serde_json::from_str(list).unwrap();
        for plugin in list["plugins"].as_array().unwrap() {
            let failure = add(&of_list(&list, plugin)).fails();
            // All is well, but that nobody listens there.
            assert_eq!(failure.code, 11, "{failure:?}");
        }
    }
}

#[test]
fn annotations_of_the_page_are_read() {
    let mut read = 0;
    for line in blocks("yaml").concat().lines() {
        let Some((key, value)) = line.trim().split_once(": ") else {
            continue;
        };
        let mut conf =
            json!({"cniVersion": "1.1.0", "name": "n", "nos-relay": {"control": "/nowhere/x"}});
        conf["runtimeConfig"] = json!({
            "io.kubernetes.cri.pod-annotations": {key: value.trim_matches('"')},
        });
        let failure = add(&conf).fails();
        assert_eq!(failure.code, 11, "{line}: {failure:?}");
        read += 1;
    }
    assert_eq!(read, 3);
}

#[test]
fn the_page_has_every_key_and_every_code() {
    let unknown = json!({"cniVersion": "1.1.0", "name": "n", "nos-relay": {"?": 1}});
    let said = add(&unknown).fails().said;
    let (_, keys) = said.split_once("there are ").unwrap();
    let rows = PAGE.split("## Keys of").nth(1).unwrap();
    for key in keys.split(", ") {
        assert!(rows.contains(&format!("`{key}`")), "{key}");
    }
    let rows = PAGE.split("| code | when |").nth(1).unwrap();
    let code = |number: u32| {
        rows.lines().any(|row| {
            let first = row.split('|').nth(1).unwrap_or_default();
            first.split(',').any(|it| it.trim() == number.to_string())
        })
    };
    for number in [1, 2, 3, 4, 5, 6, 7, 11, 50, 51, 100, 101, 102] {
        assert!(code(number), "{number}");
    }
}
