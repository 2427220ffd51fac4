/* noop SOCKET: a filter on libmilter that wants nothing: no callbacks, and every NO flag that the MTA offers. */
#include <stdio.h>
#include <string.h>
#include <libmilter/mfapi.h>

#define NOTHING                                                                                                        \
	(SMFIP_NOCONNECT | SMFIP_NOHELO | SMFIP_NOMAIL | SMFIP_NORCPT | SMFIP_NODATA | SMFIP_NOHDRS | SMFIP_NOEOH |    \
	 SMFIP_NOBODY | SMFIP_NOUNKNOWN)

static sfsistat negotiate(SMFICTX *ctx, unsigned long f0, unsigned long f1, unsigned long f2, unsigned long f3,
			  unsigned long *pf0, unsigned long *pf1, unsigned long *pf2, unsigned long *pf3)
{
	(void)ctx, (void)f0, (void)f2, (void)f3;
	*pf0 = 0;
	*pf1 = NOTHING & f1;
	*pf2 = *pf3 = 0;
	return SMFIS_CONTINUE;
}

int main(int argc, char **argv)
{
	struct smfiDesc filter;

	memset(&filter, 0, sizeof filter);
	filter.xxfi_name = "noop";
	filter.xxfi_version = SMFI_VERSION;
	filter.xxfi_negotiate = negotiate;
	if (argc != 2 || smfi_setconn(argv[1]) != MI_SUCCESS || smfi_register(filter) != MI_SUCCESS) {
		fprintf(stderr, "usage: noop unix:/PATH|inet:PORT@HOST\n");
		return 64;
	}
	return smfi_main() == MI_SUCCESS ? 0 : 1;
}
