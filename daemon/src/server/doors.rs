//! Where questions come in, and what goes on while they are answered: recording, or standing by.
//!
//! ```text
//!  bind ─► answer_while(app, work) ─► doors answer, work runs ─► doors shut, answers end
//! ```
//! The doors of a machine that stands by are [kept](Doors::again): whoever connects while it takes
//! over waits for the recorder's answer instead of being turned away.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use wirevault_config::Api;

use crate::DaemonError;
use crate::server::access::Access;
use crate::server::connections::Door;
use crate::server::scrape::{self, ScrapeDoor};
use crate::server::tls::{self, Certificates, TlsDoor};
use crate::server::{self, App, Peer};
use crate::supervisor::Supervisor;

/// How long answers may take to notice that they are to end.
pub(crate) const ANSWERS_END: Duration = Duration::from_secs(3);

/// The socket, and the ports for TLS and for metrics if there are any.
pub(crate) struct Doors {
    unix: std::os::unix::net::UnixListener,
    tls: Option<tls::Bound>,
    metrics: Option<std::net::TcpListener>,
}

/// Who may interrupt the work, and who is told of it.
pub(crate) struct Calls {
    pub(crate) supervisor: Supervisor,
    /// Who may ask.
    pub(crate) access: Arc<Access>,
    /// What is shown over TLS, if anything is.
    pub(crate) certificates: Option<Arc<Certificates>>,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// The end; this signal does.
    Stop(&'static str),
    /// The configuration is to be read again.
    Reload,
}

impl Calls {
    /// Waits; gives what ended it early, if anything did.
    pub(crate) async fn pause(&mut self, pause: Duration) -> Option<Call> {
        tokio::select! {
            _ = self.terminate.recv() => Some(Call::Stop("SIGTERM")),
            _ = self.interrupt.recv() => Some(Call::Stop("SIGINT")),
            _ = self.hangup.recv() => Some(Call::Reload),
            () = tokio::time::sleep(pause) => None,
        }
    }
}

impl Doors {
    /// Listens. Nobody is answered yet.
    ///
    /// # Errors
    /// `SocketInUse`, `Socket`, `Setting`.
    pub(crate) fn bind(api: &Api) -> Result<Self, DaemonError> {
        let tls = api.tls.as_ref().map(tls::bind).transpose()?;
        let metrics = api.metrics_listen.map(scrape::bind).transpose()?;
        Ok(Self { unix: server::bind(&api.socket)?, tls, metrics })
    }

    /// What is shown over TLS, if anything is.
    pub(crate) fn certificates(&self) -> Option<Arc<Certificates>> {
        self.tls.as_ref().map(tls::Bound::certificates)
    }

    /// The same doors, for another who answers.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn again(&self) -> Result<Self, DaemonError> {
        let tls = self.tls.as_ref().map(tls::Bound::again).transpose();
        let metrics = self.metrics.as_ref().map(std::net::TcpListener::try_clone).transpose();
        let doors = self.unix.try_clone();
        let doors = doors.and_then(|unix| Ok(Self { unix, tls: tls?, metrics: metrics? }));
        doors.map_err(system("listening"))
    }

    /// Answers until `work` has ended.
    ///
    /// # Errors
    /// The system's, and those of the work.
    pub(crate) fn answer_while<T>(
        self,
        app: &App,
        access: Access,
        work: impl AsyncFnOnce(&mut Calls) -> Result<T, DaemonError>,
    ) -> Result<T, DaemonError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(system("starting the runtime of the API"))?;
        let certificates = self.certificates();
        let result = runtime.block_on(async {
            let listener = UnixListener::from_std(self.unix).map_err(system("listening"))?;
            let terminate = signal(SignalKind::terminate()).map_err(system("taking SIGTERM"))?;
            let interrupt = signal(SignalKind::interrupt()).map_err(system("taking SIGINT"))?;
            let hangup = signal(SignalKind::hangup()).map_err(system("taking SIGHUP"))?;
            let (supervisor, access) = (Supervisor::default(), Arc::new(access));
            let service = server::router(app.clone(), Arc::clone(&access));
            let mut calls =
                Calls { supervisor, access, certificates, terminate, interrupt, hangup };
            let service = service.into_make_service_with_connect_info::<Peer>();
            let far = self.tls.map(|bound| TlsDoor::open(bound, app.clone())).transpose();
            let far = far.map_err(system("listening for TLS"))?.map(|door| {
                tracing::info!(address = %door.address(), "questions are taken over TLS, too");
                tokio::spawn(axum::serve(door, service.clone()).into_future())
            });
            let scraped = self.metrics.map(ScrapeDoor::open).transpose();
            let scraped = scraped.map_err(system("listening for collectors of metrics"))?;
            let scraped = scraped.map(|door| {
                let service = scrape::router(app.clone());
                let service = service.into_make_service_with_connect_info::<Peer>();
                tokio::spawn(axum::serve(door, service).into_future())
            });
            let answering = tokio::spawn(axum::serve(Door::new(listener), service).into_future());
            let ended = work(&mut calls).await;
            answering.abort();
            [far, scraped].into_iter().flatten().for_each(|door| door.abort());
            app.cancel_answers();
            ended
        });
        // Connections end here: their answers are dropped, and their threads notice.
        runtime.shutdown_timeout(ANSWERS_END);
        result
    }
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |source| DaemonError::System { what, source }
}
