//! containerd by `ctr run --cni`.

use serde_json::json;

use crate::base::{lab_test, skip};
use crate::containerd::{Containerd, succeeded};
use crate::engine::Network;
use crate::image;
use crate::talk::{assert_nothing_left, await_greeting, await_served, get, outsider};

lab_test! {
    fn ctr_runs_containers_on_the_nos_s_address() {
        let network = Network::new(0);
        let own = json!({"tcp": "20000", "ephemeral": "40000-40099"});
        let containerd = match Containerd::new(&network, "default", own) {
            Ok(containerd) => containerd,
            Err(reason) => return skip(&reason),
        };
        // It ends, and nothing is left.
        let [id, web, other] = ["once", "web", "other"].map(|name| format!("{name}-{}", containerd.unique()));
        let mut once = vec!["run", "--rm", "--cni", "--snapshotter", "native", image::NAME, &id];
        once.extend(["/bin/cat", "/proc/sys/net/ipv4/ip_local_port_range"]);
        let said = succeeded(&once, &containerd.ctr_with_cni(&once));
        assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["40000", "40099"]);
        assert_nothing_left(&network);
        // It goes on.
        let outsider = outsider(&network);
        let run = |name: &str| {
            let arguments = ["run", "-d", "--cni", "--snapshotter", "native", image::NAME, name];
            containerd.ctr_with_cni(&arguments)
        };
        succeeded(&["run"], &run(&web));
        let from = await_greeting(&network, &outsider);
        assert!((40000..=40099).contains(&from.port()), "{from}");
        await_served(&network, 20000);
        // A clash: the second is not started, and the first goes on.
        let clash = run(&other);
        assert!(!clash.status.success());
        let said = String::from_utf8_lossy(&clash.stderr);
        assert!(said.contains("20000 of container"), "{said}");
        await_served(&network, 20000);
        assert_eq!(network.daemon.attachments().len(), 1);
        // Nobody tells the plugin when the task of a detached container ends, but its process holds
        // what was attached.
        containerd.does(&["tasks", "kill", "--signal", "SIGKILL", &web]);
        crate::base::daemon::await_that("it is detached", || match network.registrations() {
            rows if rows.is_empty() => Ok(()),
            rows => Err(format!("{rows:?}")),
        });
        assert!(get(&network, 20000).is_err());
        assert_nothing_left(&network);
    }
}
