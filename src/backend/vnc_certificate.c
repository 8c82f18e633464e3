#include "backend/vnc_certificate.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backend/gnutls.h"
#include "base/error.h"

#define CERTIFICATE "server-cert.pem"
#define KEY "server-key.pem"

enum { DAY = 24 * 60 * 60, VALID_DAYS = 10 * 365, SERIAL_SIZE = 16 };

/* --- making one --- */

static int add_address(const struct gnutls *lib, gnutls_x509_crt_t crt, const char *text)
{
    struct in6_addr binary;
    size_t size = inet_pton(AF_INET, text, &binary) == 1 ? sizeof(struct in_addr) : inet_pton(AF_INET6, text, &binary) == 1 ? sizeof(binary) : 0;
    return size ? lib->gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_IPADDRESS, &binary, (unsigned)size, GNUTLS_FSAN_APPEND) : 0;
}

static int add_name(const struct gnutls *lib, gnutls_x509_crt_t crt, const char *name)
{
    return lib->gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_DNSNAME, name, (unsigned)strlen(name), GNUTLS_FSAN_APPEND);
}

static bool ok(int *status, int result)
{
    *status = result;
    return result >= 0;
}

/* Who it is for, and from when to when. */
static int describe(const struct gnutls *lib, gnutls_x509_crt_t crt, const char *host)
{
    char name[HOST_NAME_MAX + 1] = "";
    uint8_t serial[SERIAL_SIZE];
    time_t now = time(NULL);
    int status;
    if (gethostname(name, sizeof(name) - 1) || !*name)
        strcpy(name, "localhost");
    if (ok(&status, lib->gnutls_rnd(GNUTLS_RND_NONCE, serial, sizeof(serial))))
        serial[0] &= 0x7F;      /* a positive number (RFC 5280 §4.1.2.2) */
    bool good = status >= 0 && ok(&status, lib->gnutls_x509_crt_set_version(crt, 3)) && ok(&status, lib->gnutls_x509_crt_set_serial(crt, serial, sizeof(serial))) &&
                ok(&status, lib->gnutls_x509_crt_set_activation_time(crt, now - DAY)) &&
                ok(&status, lib->gnutls_x509_crt_set_expiration_time(crt, now + (time_t)VALID_DAYS * DAY)) &&
                ok(&status, lib->gnutls_x509_crt_set_dn_by_oid(crt, GNUTLS_OID_X520_COMMON_NAME, 0, name, (unsigned)strlen(name))) &&
                ok(&status, add_name(lib, crt, name)) && ok(&status, add_name(lib, crt, "localhost")) && ok(&status, add_address(lib, crt, "127.0.0.1")) &&
                ok(&status, add_address(lib, crt, "::1"));
    if (good && strcmp(host, "127.0.0.1") && strcmp(host, "::1"))
        ok(&status, add_address(lib, crt, host));
    return status;
}

struct pem {
    char text[4096];
    size_t size;
};

static int make_pair(const struct gnutls *lib, const char *host, struct pem *certificate, struct pem *key)
{
    gnutls_x509_privkey_t private = NULL;
    gnutls_x509_crt_t crt = NULL;
    int status;
    certificate->size = key->size = sizeof(key->text);
    (void)(ok(&status, lib->gnutls_x509_privkey_init(&private)) && ok(&status, lib->gnutls_x509_crt_init(&crt)) &&
           ok(&status, lib->gnutls_x509_privkey_generate(private, GNUTLS_PK_ECDSA, GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0)) &&
           ok(&status, describe(lib, crt, host)) && ok(&status, lib->gnutls_x509_crt_set_key(crt, private)) &&
           ok(&status, lib->gnutls_x509_crt_set_basic_constraints(crt, 1, 0)) &&
           ok(&status, lib->gnutls_x509_crt_set_key_usage(crt, GNUTLS_KEY_DIGITAL_SIGNATURE | GNUTLS_KEY_KEY_CERT_SIGN)) &&
           ok(&status, lib->gnutls_x509_crt_set_key_purpose_oid(crt, GNUTLS_KP_TLS_WWW_SERVER, 0)) &&
           ok(&status, lib->gnutls_x509_crt_sign2(crt, crt, private, GNUTLS_DIG_SHA256, 0)) &&
           ok(&status, lib->gnutls_x509_crt_export(crt, GNUTLS_X509_FMT_PEM, certificate->text, &certificate->size)) &&
           ok(&status, lib->gnutls_x509_privkey_export_pkcs8(private, GNUTLS_X509_FMT_PEM, NULL, GNUTLS_PKCS_PLAIN, key->text, &key->size)));
    if (crt)
        lib->gnutls_x509_crt_deinit(crt);
    if (private)
        lib->gnutls_x509_privkey_deinit(private);
    return status;
}

/* --- files --- */

static bool write_file(int directory, const char *name, mode_t mode, const struct pem *pem, struct error *err)
{
    int fd = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    ssize_t written = fd < 0 ? -1 : write(fd, pem->text, pem->size);
    bool good = written == (ssize_t)pem->size && fsync(fd) == 0;
    int why = written >= 0 && written < (ssize_t)pem->size ? ENOSPC : errno;
    if (fd >= 0)
        close(fd);
    if (fd >= 0 && !good)
        unlinkat(directory, name, 0);
    return good || error_errno(err, why, "cannot write %s, a part of the VNC server's certificate", name);
}

static bool make_files(const struct gnutls *lib, int directory, const char *host, struct error *err)
{
    struct pem certificate, key;
    int status = make_pair(lib, host, &certificate, &key);
    bool good = status >= 0 || error_set(err, "cannot make a certificate for the VNC server: %s", lib->gnutls_strerror(status));
    good = good && write_file(directory, KEY, 0600, &key, err);
    if (good && !write_file(directory, CERTIFICATE, 0644, &certificate, err)) {
        unlinkat(directory, KEY, 0);
        good = false;
    }
    explicit_bzero(&key, sizeof(key));
    return good;
}

static bool find_files(const struct gnutls *lib, int directory, const char *path, const char *host, struct error *err)
{
    bool certificate = faccessat(directory, CERTIFICATE, F_OK, 0) == 0, key = faccessat(directory, KEY, F_OK, 0) == 0;
    if (!certificate && !key)
        return make_files(lib, directory, host, err);
    return (certificate && key) || error_set(err, "there is %s in %s, but no %s; put it there, or remove the other one for a new pair",
                                             key ? KEY : CERTIFICATE, path, key ? CERTIFICATE : KEY);
}

/* The directory's lock is held while one looks, and makes what is not there. */
static bool provide(const struct gnutls *lib, const char *path, const char *host, struct error *err)
{
    if (mkdir(path, 0700) && errno != EEXIST)
        return error_errno(err, errno, "cannot make the directory %s for the VNC server's certificate", path);
    int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0 || flock(directory, LOCK_EX)) {
        error_errno(err, errno, "cannot open the directory %s, where the VNC server's certificate belongs", path);
        if (directory >= 0)
            close(directory);
        return false;
    }
    bool good = find_files(lib, directory, path, host, err);
    close(directory);
    return good;
}

gnutls_certificate_credentials_t vnc_certificate(const struct gnutls *lib, const char *directory, const char *host, struct error *err)
{
    char certificate[PATH_MAX + sizeof(CERTIFICATE)], key[PATH_MAX + sizeof(KEY)];
    gnutls_certificate_credentials_t credentials;
    if (!provide(lib, directory, host, err))
        return NULL;
    snprintf(certificate, sizeof(certificate), "%s/" CERTIFICATE, directory);
    snprintf(key, sizeof(key), "%s/" KEY, directory);
    if (lib->gnutls_certificate_allocate_credentials(&credentials) < 0) {
        error_set(err, "no memory for the VNC server's certificate");
        return NULL;
    }
    int status = lib->gnutls_certificate_set_x509_key_file(credentials, certificate, key, GNUTLS_X509_FMT_PEM);
    if (status >= 0)
        return credentials;
    error_set(err, "cannot use the certificate in %s with the key beside it: %s", certificate, lib->gnutls_strerror(status));
    lib->gnutls_certificate_free_credentials(credentials);
    return NULL;
}
