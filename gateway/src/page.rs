//! What a browser is served: the map's page, the description of the API, and what the two are made of.
//!
//! All of it is in the binary; nothing is fetched from anywhere else, and the page's own policy forbids it (but for the
//! tile server, where one is configured). The sources are in `web/`.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::http::Shared;

const PAGE: &str = include_str!("../../web/dist/index.html");
const SCRIPT: &str = include_str!("../../web/dist/map.js");
const STYLE: &str = include_str!("../../web/dist/map.css");
const API_PAGE: &str = include_str!("../../web/dist/api.html");
const API_SCRIPT: &str = include_str!("../../web/dist/api.js");
/// What calls there are; made from the code (see `openapi`).
const OPENAPI: &str = include_str!("../../docs/openapi.json");

/// Where the page looks for the tile server's address and its maker's name.
const TILES_MARK: &str = r#"content="TILE_URL""#;
const CREDIT_MARK: &str = r#"content="TILE_CREDIT""#;
/// And for the film that it is to show.
const FILM_MARK: &str = r#"content="FILM_URL""#;

fn served(kind: &'static str, images: &str, text: String) -> Response {
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: {images}; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_TYPE, kind.to_owned()),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
        // A new server's page is seen at once; it is small.
        (header::CACHE_CONTROL, "no-cache".to_owned()),
    ];
    (headers, text).into_response()
}

/// The map's page, which shows the film at this address; empty: the city as it is.
fn map_page(tile_url: &str, tile_credit: &str, film: &str) -> Response {
    let content = |text: &str| format!("content=\"{}\"", escaped(text));
    let text = PAGE
        .replace(TILES_MARK, &content(tile_url))
        .replace(CREDIT_MARK, &content(tile_credit))
        .replace(FILM_MARK, &content(film));
    let images = origin(tile_url).unwrap_or_default();
    served("text/html; charset=utf-8", images, text)
}

/// The map's page over the film at `/film`.
pub fn over_film() -> Response {
    map_page("", "", "/film")
}

/// As the value of an attribute.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('"', "&quot;")
        .replace('<', "&lt;")
}

/// Scheme, host and port of an address.
pub fn origin(url: &str) -> Option<&str> {
    let host = url
        .strip_prefix("https://")
        .or(url.strip_prefix("http://"))?;
    let scheme = url.len() - host.len();
    let end = host.find('/').unwrap_or(host.len());
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-:".contains(c);
    let is_host = end > 0 && host[..end].chars().all(is_plain);
    is_host.then(|| &url[..scheme + end])
}

/// `GET /`
pub async fn index(State(edge): Shared) -> Response {
    let map = &edge.config.map;
    map_page(&map.tile_url, &map.tile_credit, "")
}

/// `GET /map.js`
pub async fn script() -> Response {
    served("text/javascript; charset=utf-8", "", SCRIPT.to_owned())
}

/// `GET /map.css`
pub async fn style() -> Response {
    served("text/css; charset=utf-8", "", STYLE.to_owned())
}

/// `GET /api`
pub async fn api() -> Response {
    served("text/html; charset=utf-8", "", API_PAGE.to_owned())
}

/// `GET /api.js`
pub async fn api_script() -> Response {
    served("text/javascript; charset=utf-8", "", API_SCRIPT.to_owned())
}

/// `GET /openapi.json`
pub async fn openapi() -> Response {
    served("application/json", "", OPENAPI.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_may_fetch_pictures_from_the_tile_servers_host_and_nothing_can_be_slipped_into_its_policy()
     {
        assert_eq!(
            origin("https://tiles.example:8443/{z}/{x}/{y}.png"),
            Some("https://tiles.example:8443")
        );
        assert_eq!(origin("http://127.0.0.1"), Some("http://127.0.0.1"));
        for bad in [
            "",
            "tiles/{z}",
            "https:///x",
            "https://a b/",
            "https://a;script-src/",
        ] {
            assert_eq!(origin(bad), None, "{bad}");
        }
        assert!(
            [TILES_MARK, CREDIT_MARK, FILM_MARK]
                .iter()
                .all(|mark| PAGE.contains(mark))
        );
    }
}
