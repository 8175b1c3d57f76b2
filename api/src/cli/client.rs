//! The REST API as the command line uses it.

use crate::limits;
use anyhow::{Context as _, bail};
use clap::Args;
use reqwest::{Client, Method, Response, Url};
use serde::de::DeserializeOwned;

/// Which hub, and how it answers.
#[derive(Debug, Args)]
pub(crate) struct Hub {
    /// The hub's REST API.
    #[arg(
        long,
        env = "SENDENSE_HUB",
        value_name = "URL",
        default_value = "http://127.0.0.1:8082"
    )]
    hub: Url,
    /// Sent as a bearer token.
    #[arg(
        long,
        env = "SENDENSE_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

impl Hub {
    /// Gets `/api/v1/{segments}?{query}`; segments are escaped.
    ///
    /// # Errors
    /// When the hub does not answer, or refuses; the refusal's own words are told.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        segments: &[&str],
        query: &[(&str, &str)],
    ) -> anyhow::Result<T> {
        self.call(Method::GET, segments, query).await
    }

    /// Deletes `/api/v1/{segments}`; segments are escaped.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(crate) async fn delete<T: DeserializeOwned>(&self, segments: &[&str]) -> anyhow::Result<T> {
        self.call(Method::DELETE, segments, &[]).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        segments: &[&str],
        query: &[(&str, &str)],
    ) -> anyhow::Result<T> {
        let url = self.url(segments, query)?;
        let client = Client::builder()
            .connect_timeout(limits::CLIENT_CONNECT)
            .build()
            .context("build the http client")?;
        let mut request = client.request(method, url.clone());
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = request
            .send()
            .await
            .with_context(|| format!("ask the hub url={url}"))?;
        read(response)
            .await
            .with_context(|| format!("ask the hub url={url}"))
    }

    fn url(&self, segments: &[&str], query: &[(&str, &str)]) -> anyhow::Result<Url> {
        let mut url = self.hub.clone();
        match url.path_segments_mut() {
            Ok(mut path) => path.pop_if_empty().extend(["api", "v1"]).extend(segments),
            Err(()) => bail!("a hub has an http address hub={}", self.hub),
        };
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }
}

async fn read<T: DeserializeOwned>(response: Response) -> anyhow::Result<T> {
    let status = response.status();
    let text = response.text().await.context("read the answer")?;
    if !status.is_success() {
        bail!("{} status={}", refusal(&text), status.as_u16());
    }
    serde_json::from_str(&text).context("the answer is not what a hub says")
}

/// The hub's words in a refusal of any family, or the first of whatever came.
fn refusal(body: &str) -> String {
    let fields: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let part = |name: &str| fields[name].as_str().filter(|text| !text.is_empty());
    let error = part("error").or(part("title"));
    match (error, part("details").or(part("detail"))) {
        (Some(error), Some(details)) => format!("{error}: {details}"),
        (Some(error), None) => error.to_owned(),
        _ => body.trim().chars().take(200).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(url: &str) -> Hub {
        Hub {
            hub: url.parse().unwrap(),
            token: None,
            json: false,
        }
    }

    #[test]
    fn names_are_escaped_in_the_address() {
        let check = |base: &str, expected: &str| {
            let url = hub(base)
                .url(&["backups", "a/b c"], &[("vm_name", "ä&b")])
                .unwrap();
            assert_eq!(url.as_str(), expected);
        };
        let tail = "/api/v1/backups/a%2Fb%20c?vm_name=%C3%A4%26b";
        check("http://h:1", &format!("http://h:1{tail}"));
        check("http://h:1/", &format!("http://h:1{tail}"));
        check("http://h:1/hub/", &format!("http://h:1/hub{tail}"));
        assert!(hub("mailto:x").url(&[], &[]).is_err());
    }

    #[test]
    fn refusals_of_every_family_are_told() {
        let check = |body: &str, told: &str| assert_eq!(refusal(body), told);
        check(r#"{"error":"a","details":"b","timestamp":""}"#, "a: b");
        check(r#"{"error":"a","details":"","timestamp":""}"#, "a");
        check(r#"{"title":"a","detail":"b"}"#, "a: b");
        check("404 page not found\n", "404 page not found");
        check(r#"[1]"#, "[1]");
    }
}
