// A website that greets who came by a link in its mail: dotnet run -- ISSUER AUDIENCE

using System.Collections.Concurrent;
using System.Security.Cryptography;
using Mailtap.Handoff;

var builder = WebApplication.CreateBuilder();
var app = builder.Build();
var verifier = new HandoffVerifier(new HttpClient(), args[0], args[1]);
var sessions = new ConcurrentDictionary<string, Visitor>();

app.Run(async context =>
{
    var (request, response) = (context.Request, context.Response);
    if (request.Query.ContainsKey("mt"))
    {
        if (await verifier.VerifyAsync(request.Query["mt"]) is { } visitor)
        {
            var id = Convert.ToHexString(RandomNumberGenerator.GetBytes(16));
            sessions[id] = visitor;
            var options = new CookieOptions { Secure = true, HttpOnly = true, SameSite = SameSiteMode.Lax };
            response.Cookies.Append("session", id, options);
        }
        // Known or not, the token leaves the address bar, the history and the Referer.
        var rest = request.Query.Where(pair => pair.Key != "mt");
        response.Headers.CacheControl = "no-store";
        response.Headers["Referrer-Policy"] = "no-referrer";
        response.StatusCode = StatusCodes.Status303SeeOther;
        response.Headers.Location = request.Path.ToUriComponent() + QueryString.Create(rest).ToUriComponent();
        return;
    }
    var known = sessions.GetValueOrDefault(request.Cookies["session"] ?? "");
    response.ContentType = "text/plain; charset=utf-8";
    await response.WriteAsync(known is null ? "nobody we know\n" : $"recipient {known.Recipient}\n");
});

app.Run();
