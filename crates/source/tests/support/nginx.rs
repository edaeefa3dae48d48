//! A real nginx with its own folder and ports, stopped when dropped.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A running nginx.
pub(crate) struct Nginx {
    process: Child,
    folder: TempDir,
    port: u16,
    tls_port: u16,
}

impl Nginx {
    /// Starts one that serves the files that [`Nginx::put`] adds, in several moods: see the configuration below.
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("files")).unwrap();
        make_certificate(folder.path());
        // nginx cannot be given a port 0: a port found free may be taken until nginx binds it, then another one is tried.
        for _ in 0..10 {
            let (port, tls_port) = (free_port(), free_port());
            std::fs::write(
                folder.path().join("nginx.conf"),
                configuration(port, tls_port),
            )
            .unwrap();
            let mut process = Command::new("nginx")
                .args(["-e", "stderr", "-c", "nginx.conf", "-p"])
                .arg(folder.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("nginx must be installed (apt-get install nginx-light)");
            if answers(&mut process, port) && answers(&mut process, tls_port) {
                return Self {
                    process,
                    folder,
                    port,
                    tls_port,
                };
            }
            let _ = process.kill();
            let _ = process.wait();
        }
        panic!("nginx did not start: try nginx -t with the configuration of this test");
    }

    /// Puts a file into the served folder.
    pub(crate) fn put(&self, name: &str, content: &[u8]) {
        let path = self.folder.path().join("files").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// `mood` is one of the locations of the configuration.
    pub(crate) fn url(&self, mood: &str, name: &str) -> String {
        format!("http://127.0.0.1:{}/{mood}/{name}", self.port)
    }

    pub(crate) fn tls_url(&self, mood: &str, name: &str) -> String {
        format!("https://localhost:{}/{mood}/{name}", self.tls_port)
    }

    /// The CA of the TLS port, in DER.
    pub(crate) fn ca(&self) -> Vec<u8> {
        std::fs::read(self.folder.path().join("ca.der")).unwrap()
    }

    /// How many requests were answered so far with this text in their log line.
    pub(crate) fn requests(&self, text: &str) -> usize {
        let log =
            std::fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default();
        log.lines().filter(|line| line.contains(text)).count()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn configuration(port: u16, tls_port: u16) -> String {
    format!(
        r#"
daemon off;
master_process off;
pid nginx.pid;
events {{ worker_connections 256; }}
http {{
    access_log access.log;
    client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp; scgi_temp_path tmp;
    types {{ text/html html; }}
    default_type application/octet-stream;
    server {{
        listen 127.0.0.1:{port};
        listen 127.0.0.1:{tls_port} ssl;
        ssl_certificate server.pem;
        ssl_certificate_key server.key;
        location /files/ {{ alias files/; autoindex on; autoindex_exact_size on; }}
        location /json/ {{ alias files/; autoindex on; autoindex_format json; }}
        location /whole/ {{ alias files/; max_ranges 0; }}
        location /chunked/ {{ alias files/; sub_filter_types *; sub_filter "\0never" "x"; }}
        location /slow/ {{ alias files/; limit_rate 2m; }}
        location /moved/ {{ rewrite ^/moved/(.*)$ /files/$1 redirect; }}
        location /tls/ {{ return 307 https://localhost:{tls_port}/files/; }}
        location /private/ {{ alias files/; if ($http_authorization != "Basic dXNlcjpwYXNz") {{ return 401; }} }}
    }}
}}
"#
    )
}

/// A CA and a certificate for `localhost`, made by the openssl command.
fn make_certificate(folder: &Path) {
    let openssl = |arguments: &str| {
        let done = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(folder)
            .stdin(Stdio::null())
            .output()
            .expect("openssl must be installed (apt-get install openssl)");
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650";
    openssl(&format!(
        "req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=test-ca -addext basicConstraints=critical,CA:TRUE"
    ));
    openssl("x509 -in ca.pem -outform der -out ca.der");
    openssl(&format!(
        "req -x509 -CA ca.pem -CAkey ca.key {key} -keyout server.key -out server.pem -subj /CN=localhost -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE"
    ));
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Waits until the process listens, up to ten seconds; false if it ended.
fn answers(process: &mut Child, port: u16) -> bool {
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        if process.try_wait().unwrap().is_some() {
            return false;
        }
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}
