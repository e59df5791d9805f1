//! The plugin as an engine runs it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nos_relay::lab::testbed::LabNamespace;
use serde_json::{Value, json};

/// The plugin under test.
pub(crate) fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_nos-relay-cni").into()
}

/// One call of a plugin.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    program: PathBuf,
    /// Where it runs, if not where the test does.
    host: Option<LabNamespace>,
    variables: BTreeMap<&'static str, String>,
    input: Vec<u8>,
}

impl Call {
    /// Of a command, with a configuration.
    pub(crate) fn new(command: &str, configuration: &Value) -> Self {
        let call = Self {
            program: program(),
            host: None,
            variables: BTreeMap::new(),
            input: configuration.to_string().into(),
        };
        call.with("CNI_COMMAND", command)
            .with("CNI_PATH", "/usr/lib/cni")
    }

    /// Of another plugin than ours, which runs on this host.
    pub(crate) fn of_other(mut self, plugin: &str, host: &LabNamespace) -> Self {
        self.program = Path::new("/usr/lib/cni").join(plugin);
        self.host = Some(host.clone());
        // It calls others, which look for iptables.
        self.with("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    }

    pub(crate) fn with(mut self, variable: &'static str, value: impl Into<String>) -> Self {
        self.variables.insert(variable, value.into());
        self
    }

    pub(crate) fn without(mut self, variable: &'static str) -> Self {
        self.variables.remove(variable);
        self
    }

    pub(crate) fn saying(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// For a container's interface `eth0`.
    pub(crate) fn of(self, container: &str) -> Self {
        self.with("CNI_CONTAINERID", container)
            .with("CNI_IFNAME", "eth0")
    }

    pub(crate) fn inside(self, netns: &Path) -> Self {
        self.with("CNI_NETNS", netns.display().to_string())
    }

    /// The result; null where there is none to be.
    pub(crate) fn succeeds(&self) -> Value {
        self.outcome()
            .unwrap_or_else(|failure| panic!("{self:?}: {failure:?}"))
    }

    pub(crate) fn fails(&self) -> Failure {
        match self.outcome() {
            Err(failure) => failure,
            Ok(result) => panic!("{self:?}: {result}"),
        }
    }

    /// The result, or the error, which is as the specification says.
    pub(crate) fn outcome(&self) -> Result<Value, Failure> {
        let output = self.output();
        let text = String::from_utf8(output.stdout).unwrap();
        let value = match text.is_empty() {
            true => Value::Null,
            false => serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text:?}")),
        };
        if output.status.success() {
            return Ok(value);
        }
        assert_eq!(output.status.code(), Some(1), "{self:?}: {text}");
        let field = |key: &str| {
            value[key]
                .as_str()
                .unwrap_or_else(|| panic!("{value}"))
                .to_owned()
        };
        assert!(
            ["0.4.0", "1.0.0", "1.1.0"].contains(&field("cniVersion").as_str()),
            "{value}"
        );
        Err(Failure {
            code: value["code"].as_u64().unwrap(),
            said: format!("{}: {}", field("msg"), field("details")),
        })
    }

    fn output(&self) -> Output {
        self.start().wait_with_output().unwrap()
    }

    /// Starts it, and does not wait.
    pub(crate) fn start(&self) -> Child {
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .envs(&self.variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        if let Some(host) = &self.host {
            host.hold(&mut command);
        }
        let mut child = command.spawn().unwrap();
        // One that needs no input may have ended already.
        let _ = child.stdin.take().unwrap().write_all(&self.input);
        child
    }
}

/// What an engine is told of a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: u64,
    pub(crate) said: String,
}

/// A configuration for the daemon at `control`, with these keys in our section.
pub(crate) fn configuration(control: &Path, own: Value) -> Value {
    let mut section = own;
    section["control"] = control.display().to_string().into();
    json!({"cniVersion": "1.1.0", "name": "nosnet", "type": "nos-relay-cni", "nos-relay": section})
}

/// The same with what an engine adds for one container.
pub(crate) fn at_run_time(configuration: &Value, runtime: Value) -> Value {
    let mut configuration = configuration.clone();
    configuration["runtimeConfig"] = runtime;
    configuration
}
